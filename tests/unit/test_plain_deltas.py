"""Ordinary events of a stream are taken by their bytes, with the same result as by the parser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchray.errors import InvalidResponseError
from batchray.models.base import ModelCall, ModelReply
from batchray.models.client import HttpClient
from batchray.models.connection import Connection
from batchray.models.http import HttpTransport
from batchray.models.openai_reply import PartialCompletion
from batchray.models.plain_deltas import PlainDeltas
from batchray.models.provider_errors import TransientError

HEAD = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"'
TRANSPORT = HttpTransport("local", Connection("local", "http://h", {}))
TAIL = b'"},"finish_reason":null}]}\n\n'


class Chunks:
    """The body of a response, in these chunks."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = [*chunks, b""]

    async def readany(self) -> bytes:
        return self._chunks.pop(0)

    def at_eof(self) -> bool:
        return True


def learned() -> PlainDeltas:
    deltas = PlainDeltas()
    deltas.learn((HEAD + b"hi" + TAIL).removeprefix(b"data: ").strip(), "content", "hi")
    assert deltas.field == "content"
    return deltas


def test_the_texts_of_whole_events_are_joined_and_an_unfinished_event_is_left() -> None:
    chunk = b"".join(HEAD + text + TAIL for text in (b"a", b"", "ü".encode(), rb"\n\"q\"")) + HEAD + b"unfinis"
    assert learned().take(chunk) == ('aü\n"q"', HEAD + b"unfinis")


@pytest.mark.parametrize(
    "text",
    [
        *(b'a","role":"b', b'a"},"finish_reason":"stop","x":{"y":"', b"\xff", rb"\ud83d", rb"a\x"),
        *(b"\\", b"a\rb", b"a\ndata: b"),
    ],
)
def test_a_delta_with_more_than_plain_text_is_left_to_the_parser(text: bytes) -> None:
    chunk = HEAD + b"a" + TAIL + HEAD + text + TAIL
    assert learned().take(chunk) == ("", chunk)


@pytest.mark.parametrize("chunk", [b"", b": ping\n\n", b"event: x\n" + HEAD + b"a" + TAIL, HEAD.replace(b"1", b"2")])
def test_other_events_are_left_to_the_parser(chunk: bytes) -> None:
    assert learned().take(chunk) == ("", chunk)


def test_an_event_in_which_the_text_has_no_certain_place_is_not_learned() -> None:
    deltas = PlainDeltas()
    deltas.learn(b'{"content":"a","choices":[{"delta":{"content":"a"}}]}', "content", "a")
    deltas.learn(rb'{"choices":[{"delta":{"content":"\n"}}]}', "content", "\n")
    assert deltas.field == ""


WORDS = st.sampled_from(["a", " b", "ü", "\n", '"', "\\", "\u2028", "\U0001f600", "", '","role":"x'])
DELTAS = st.one_of(
    st.builds(lambda word: {"content": word}, WORDS),
    st.builds(lambda word: {"reasoning_content": word}, WORDS),
    st.builds(lambda word: {"role": "assistant", "content": word, "reasoning_content": None}, WORDS),
    st.builds(lambda word: {"content": word, "reasoning_content": "r"}, WORDS),
    st.just({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}),
    st.just({"content": None}),
)
CHOICES = st.one_of(
    st.builds(lambda delta: {"index": 0, "delta": delta, "finish_reason": None}, DELTAS),
    st.builds(lambda delta: {"index": 1, "delta": delta}, DELTAS),
    st.builds(lambda delta, n: {"index": 0, "delta": delta, "logprobs": [n]}, DELTAS, st.integers(0, 9)),
)
USAGES = st.sampled_from([None, None, {"prompt_tokens": 3, "completion_tokens": 7}])
EVENTS = st.builds(lambda choice, usage: {"id": "1", "choices": [choice], "usage": usage}, CHOICES, USAGES)
STYLES = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "separators": st.sampled_from([(",", ":"), (", ", ": ")])}
)
LAST = b'data: {"choices":[{"index":0,"delta":{"content":"."},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
PLAIN = {"id": "1", "choices": [{"index": 0, "delta": {"content": "w"}, "finish_reason": None}], "usage": None}


@given(st.lists(EVENTS), STYLES, st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(1, 300)))
@example([PLAIN] * 30, {"separators": (",", ":")}, b"\n", [])
@example([PLAIN] * 30, {"separators": (",", ":")}, b"\n", [7] * 500)
async def test_a_stream_gives_the_same_reply_with_and_without_the_fast_path(
    events: list[dict[str, Any]], style: dict[str, Any], line_end: bytes, sizes: list[int]
) -> None:
    stream = b"".join(b"data: %b\n\n" % json.dumps(event, **style).encode() for event in events) + LAST
    chunks = _cut(stream.replace(b"\n", line_end), sizes)
    fast, slow = PartialCompletion(TRANSPORT), PartialCompletion(TRANSPORT)
    slow._plain._n_tries = 1000
    assert await _read(fast, chunks) == await _read(slow, chunks)
    assert not slow._plain.field


def test_an_ordinary_stream_takes_the_fast_path() -> None:
    answer = PartialCompletion(TRANSPORT)
    answer._learn(PLAIN, json.dumps(PLAIN).encode())
    event = b"data: " + json.dumps(PLAIN).encode() + b"\n\n"
    assert answer.take_plain(event * 3 + LAST) == LAST
    assert answer._text == ["www"]


def _cut(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(stream[:size])
        stream = stream[size:]
    return [chunk for chunk in (*chunks, stream) if chunk]


async def _read(answer: PartialCompletion, chunks: Sequence[bytes]) -> ModelReply | str:
    """Return the reply of a stream, without when its first token came, or the error."""
    client = HttpClient("test", "http://test", None, "bearer", {}, {}, {})
    try:
        await client._read_stream(Chunks(chunks[1:]), answer, chunks[0])
        answer.check()
        reply = answer.reply(ModelCall("m", ()), lambda: "id")
    except (InvalidResponseError, TransientError) as error:
        return repr(error)
    assert (reply.first_token_ns is None) == (not (answer._text or answer._reasoning or reply.tool_calls))
    return ModelReply(reply.content, reply.tool_calls, reply.finish_reason, reply.usage, items=reply.items)
