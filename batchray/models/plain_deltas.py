"""A fast path for the ordinary events of a stream, which differ in nothing but a text.

Nearly all events of a long reply are one object with the next word in it.  Once such an event has been parsed, the
bytes around its text are known, and events with the same bytes are taken together, without an object for each.  Any
other event is left to the parser.
"""

from __future__ import annotations

import re

import orjson

_DATA = b"data: "
_END = b"\n\n"
_IS_NO_PLAIN_TEXT = re.compile(rb'["\\\r\n]')
# For a stream whose events differ in more than a text.
_MAX_TRIES = 8


class PlainDeltas:
    """The bytes around the text of a stream's ordinary events."""

    __slots__ = ("_after", "_before", "_between", "_n_tries", "field")

    def __init__(self) -> None:
        self.field = ""
        """The field of the delta that has the text; empty before the first ordinary event."""
        self._before = self._after = self._between = b""
        self._n_tries = 0

    @property
    def may_learn(self) -> bool:
        """Whether it still learns: the ordinary events of reasoning and of text are not the same."""
        return self._n_tries < _MAX_TRIES

    def learn(self, data: bytes, field: str, text: str) -> None:
        """Learn from the data of an event, which is ordinary and has this text in this field of its delta."""
        self._n_tries += 1
        before, found, rest = data.partition(b'"%b":' % field.encode())
        quoted = b'"%b"' % text.encode(errors="replace")
        is_apart = rest.startswith(b" ")
        if not found or not rest.startswith(quoted, is_apart) or found in rest or b"\n" in data:
            return
        self.field = field
        self._before = _DATA + before + found + b' "'[not is_apart :]
        self._after = rest[is_apart + len(quoted) - 1 :] + _END
        self._between = self._after + self._before

    def take(self, chunk: bytes) -> tuple[str, bytes]:
        """Return the joined texts of the ordinary events at the beginning of a chunk, and the rest of it.

        The chunk begins with an event.
        """
        if not self.field or not chunk.startswith(self._before):
            return "", chunk
        texts = chunk[len(self._before) :].split(self._between)
        last, is_whole, rest = texts.pop().partition(self._after)
        if is_whole:
            texts.append(last)
        else:
            rest = self._before + last
        joined = b"".join(texts)
        try:
            if _IS_NO_PLAIN_TEXT.search(joined) is None:
                return joined.decode(), rest
            return "".join([orjson.loads(b'"%b"' % text) for text in texts]), rest
        except ValueError:  # not texts alone, or odd ones
            return "", chunk
