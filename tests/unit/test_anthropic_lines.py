from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from batchray.schema import HiddenReasoningMessage, ItemStatus, ReasoningMessage, Result, StopReason
from batchray.views.anthropic_lines import anthropic_line
from tests.builders.results import ITEM, WHEN, extras, failed, result, said, waiting

if TYPE_CHECKING:
    from anthropic.types import Message
    from anthropic.types.messages import MessageBatchIndividualResponse


def line_of(given: Result) -> MessageBatchIndividualResponse:
    from anthropic.types.messages import MessageBatchIndividualResponse

    line = MessageBatchIndividualResponse.model_validate(orjson.loads(anthropic_line(given)))
    assert extras(line) == []
    return line


def message_of(given: Result) -> Message:
    from anthropic.types.messages import MessageBatchSucceededResult

    found = line_of(given).result
    assert isinstance(found, MessageBatchSucceededResult)
    return found.message


def test_a_success_has_the_message() -> None:
    message = message_of(result(messages=[said("one", 1), said("It is 8.")]))
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "It is 8."}]
    assert (message.model, message.stop_reason) == ("offline/rules", "end_turn")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (4, 3, 5)


def test_calls_that_wait_for_the_caller_are_blocks_of_the_message() -> None:
    message = message_of(waiting("I need two looks."))
    assert (message.stop_reason, [block.type for block in message.content]) == (
        "tool_use",
        ["text", "tool_use", "tool_use"],
    )
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [(call.id, call.name, call.input) for call in calls] == [
        ("call-1", "look", {"at": "sky"}),
        ("call-2", "look", {"at": "sky"}),
    ]


def test_reasoning_that_the_provider_has_signed_comes_first() -> None:
    common: dict[str, Any] = {"step_id": "step-2", "date": WHEN}
    thoughts = [
        ReasoningMessage(id="message-2", reasoning="unsigned", **common),
        ReasoningMessage(id="message-2", reasoning="hm", signature="s", **common),
        HiddenReasoningMessage(id="message-2", state="redacted", hidden_reasoning="x", **common),
    ]
    message = message_of(result(messages=[*thoughts, said("It is 8.")]))
    assert [block.type for block in message.content] == ["thinking", "redacted_thinking", "text"]


@pytest.mark.parametrize(
    ("type", "kind"),
    [
        ("bad_request", "invalid_request_error"),
        ("authentication_error", "authentication_error"),
        ("rate_limited", "rate_limit_error"),
        ("deadline_exceeded", "timeout_error"),
        ("ValueError", "api_error"),
    ],
)
def test_a_failure_has_the_type_of_the_error(type: str, kind: str) -> None:
    from anthropic.types.messages import MessageBatchErroredResult

    found = line_of(failed(type)).result
    assert isinstance(found, MessageBatchErroredResult)
    assert (found.error.error.type, found.error.error.message) == (kind, "it says why")


@pytest.mark.parametrize(("status", "reason"), [("canceled", StopReason.CANCELLED), ("expired", StopReason.ERROR)])
def test_a_line_of_a_canceled_or_expired_item_has_only_the_type(status: str, reason: StopReason) -> None:
    line = orjson.loads(anthropic_line(result(custom_id=None, status=ItemStatus(status), stop_reason=reason)))
    assert line == {"custom_id": ITEM, "result": {"type": status}}
    line_of(result(status=ItemStatus(status), stop_reason=reason))


def test_an_answer_that_the_limit_of_steps_cut_says_so() -> None:
    assert message_of(result(stop_reason=StopReason.MAX_STEPS)).stop_reason == "max_tokens"
