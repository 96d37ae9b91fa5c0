"""The messages of a run are written in a protocol's form once, however many calls send them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from batchray.models import ModelCall, WrittenMessages
from batchray.models.openai_request import request_body
from batchray.schema import Message, MessageToolReturn, TextContent, ToolCall


def message(number: int, **fields: Any) -> Message:
    text = [TextContent(text=f"text {number}")]
    return Message(**{"id": f"m{number}", "role": "user", "content": text, "created_at": datetime.now(UTC), **fields})


def conversation() -> list[Message]:
    """Return a conversation whose messages take each of the forms of the protocol."""
    call, returned = ToolCall.of("c", "look", "{}"), MessageToolReturn(tool_call_id="c", status="success")
    item = {"role": "assistant", "reasoning_content": "", "extra_content": {"signature": "s"}}
    return [
        message(0),
        message(1, role="assistant", tool_calls=[call]),
        message(2, role="tool", tool_returns=[returned, returned.model_copy(update={"tool_call_id": "d"})]),
        message(3, role="assistant", provider_items=[item]),
        message(4, role="system"),
        message(5, role="assistant"),
    ]


@pytest.fixture
def counted() -> Counter[str]:
    return Counter()


def of(written: WrittenMessages, messages: list[Message], counted: Counter[str]) -> list[dict[str, Any]]:
    def write(each: Message) -> Iterator[dict[str, Any]]:
        counted[each.id] += 1
        yield {"id": each.id}
        yield {"second": each.id}

    return written.of(messages, write)


def test_a_message_is_written_once_for_all_calls_that_send_it(counted: Counter[str]) -> None:
    written, messages = WrittenMessages(), [message(0), message(1), message(2)]
    for n in (1, 2, 3):
        parts = of(written, messages[:n], counted)
        assert parts == [part for each in messages[:n] for part in ({"id": each.id}, {"second": each.id})]
    assert counted == {"m0": 1, "m1": 1, "m2": 1}


def test_another_message_with_the_same_id_is_written_itself(counted: Counter[str]) -> None:
    written, messages = WrittenMessages(), [message(0)]
    of(written, messages, counted)
    of(written, [messages[0].model_copy()], counted)
    assert counted == {"m0": 2}


def test_a_message_that_a_call_does_not_send_is_forgotten(counted: Counter[str]) -> None:
    written, messages = WrittenMessages(), [message(0), message(1)]
    for sent in (messages, messages[1:], messages):
        of(written, sent, counted)
    assert counted == {"m0": 2, "m1": 1}


def test_a_message_with_items_of_its_provider_is_written_each_time(counted: Counter[str]) -> None:
    written, messages = WrittenMessages(), [message(0, role="assistant", provider_items=[{"signature": "s"}])]
    for _ in range(3):
        of(written, messages, counted)
    assert counted == {"m0": 3}


def test_the_bodies_of_a_growing_conversation_are_the_same_as_those_of_single_calls() -> None:
    written, messages = WrittenMessages(), conversation()
    for n in range(1, len(messages) + 1):
        of_run = ModelCall("m", messages[:n], system="be brief", written=written)
        assert request_body(of_run) == request_body(ModelCall("m", messages[:n], system="be brief"))
