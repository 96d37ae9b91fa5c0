from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchray.errors import InvalidResponseError
from batchray.models.sse import MAX_LINE_BYTES, Event, EventParser

LINES = st.sampled_from(
    [b"", b"", b"data: {}", b"data:x", b"data:  y", b"data", b": note", b"event: error", b"event", b"id: 1", b"\xffz"]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def parse(*chunks: bytes, max_line_bytes: int = MAX_LINE_BYTES) -> list[Event]:
    parser = EventParser(max_line_bytes)
    return [event for chunk in chunks for event in parser.feed(chunk)]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(bounds)]


@settings(deadline=None)
@given(st.lists(st.tuples(LINES, ENDS)), st.lists(st.integers(0, 10_000)))
def test_any_chunking_gives_the_same_events(lines: list[tuple[bytes, bytes]], places: list[int]) -> None:
    stream = b"".join(line + end for line, end in lines)
    assert parse(*cut(stream, places)) == parse(stream)
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == parse(stream)


@settings(deadline=None)
@given(st.lists(LINES), ENDS)
def test_all_line_ends_give_the_same_events(lines: list[bytes], end: bytes) -> None:
    assert parse(b"".join(line + end for line in lines)) == parse(b"".join(line + b"\n" for line in lines))


@settings(deadline=None)
@given(st.binary(), st.lists(st.integers(0, 10_000)))
def test_any_chunking_of_any_bytes_gives_the_same_events(stream: bytes, places: list[int]) -> None:
    assert parse(*cut(stream, places)) == parse(stream)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [Event(b"", b"a"), Event(b"", b"b")]),
        (b"data: a\ndata: b\n\n", [Event(b"", b"a\nb")]),
        (b"event: error\ndata: a\n\ndata: b\n\n", [Event(b"error", b"a"), Event(b"", b"b")]),
        (b"event: error\n\ndata: b\n\n", [Event(b"", b"b")]),
        (b": ping\n\n: ping\n\ndata: a\n\n", [Event(b"", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event(b"", b"a")]),
        (b"data:a:b\n\n", [Event(b"", b"a:b")]),
        (b"data\n\n", [Event(b"", b"")]),
        (b"datax: a\n\n", []),
        (b"data: a\n", []),
        (b"data: a", []),
    ],
)
def test_streams_are_parsed_as_the_standard_says(stream: bytes, expected: list[Event]) -> None:
    assert parse(stream) == expected


@pytest.mark.parametrize("rest", [b"data: b", b"data: b\n", b"data: b\r", b"event: x\ndata: b"])
def test_the_end_of_the_stream_ends_an_event(rest: bytes) -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\n\n" + rest) == [Event(b"", b"a")]
    assert [event.data for event in parser.end()] == [b"b"]
    assert parser.end() == []


@pytest.mark.parametrize("chunks", [[b"data: " + b"x" * 20], [b"data: xxx"] + [b"x"] * 20, [b"data: 12\n"] * 5])
def test_an_endless_line_or_event_is_refused(chunks: list[bytes]) -> None:
    with pytest.raises(InvalidResponseError) as raised:
        parse(*chunks, max_line_bytes=16)
    assert raised.value.type == "malformed_stream"


def test_the_size_limit_is_per_event_not_per_stream() -> None:
    parser = EventParser(max_line_bytes=16)
    assert sum(len(parser.feed(b"data: 123456\n\n")) for _ in range(100)) == 100
