"""A parser of server-sent events from chunks of bytes."""

from __future__ import annotations

from typing import NamedTuple

from batchray.errors import InvalidResponseError

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Limit of a line, and of one event's data: far more than any delta, far less than what harms a worker."""

_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event.  `name` is empty if the stream gives none; `data` is its lines, joined by line feeds."""

    name: bytes
    data: bytes


class EventParser:
    """Parses one event stream; buffers at most one unfinished event.

    The end of the stream also ends an event, because some servers leave out the last blank line.  A field without a
    colon has an empty value.
    Source: WHATWG HTML, 9.2.6 "Interpreting an event stream"; `id` and `retry` are ignored.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_line_bytes
        self._pieces: list[bytes] = []  # of an unfinished line; joined once, so that tiny chunks stay cheap
        self._n_bytes = 0
        self._is_first_line, self._ends_in_cr = True, False
        self._name = b""
        self._data: list[bytes] = []
        self._n_data_bytes = 0

    @property
    def is_between_events(self) -> bool:
        """Whether the next chunk begins with an event."""
        return not (self._pieces or self._data or self._name or self._ends_in_cr or self._is_first_line)

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completes.

        Raises InvalidResponseError (`malformed_stream`) for a line or an event that is too long.
        """
        if self._ends_in_cr and chunk:
            self._ends_in_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._ends_in_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if lines:
            lines[0] = self._end_line(lines[0])
        if rest:
            self._pieces.append(rest)
            self._n_bytes += len(rest)
            self._check(self._n_bytes)
        return self._events_of(lines)

    def end(self) -> list[Event]:
        """Return the event that the end of the stream completes, or none."""
        lines = [self._end_line(b"")] if self._pieces else []
        return self._events_of([*lines, b""])

    def _end_line(self, end: bytes) -> bytes:
        """Return the complete line that earlier chunks began and `end` ends."""
        line = b"".join((*self._pieces, end)) if self._pieces else end
        self._pieces.clear()
        self._n_bytes = 0
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        return line

    def _events_of(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        data = self._data
        for line in lines:  # hot path, two lines per token: no calls to our own functions here
            if line[:5] == b"data:" or line == b"data":
                self._n_data_bytes += len(line)
                if self._n_data_bytes > self._max_bytes:
                    self._check(self._n_data_bytes)
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line:
                if data:
                    events.append(Event(self._name, data[0] if len(data) == 1 else b"\n".join(data)))
                    data.clear()
                    self._n_data_bytes = 0
                self._name = b""
            else:
                self._check(len(line))
                if line[:6] == b"event:" or line == b"event":
                    self._name = line[6:].removeprefix(b" ")
        return events

    def _check(self, n_bytes: int) -> None:
        if n_bytes > self._max_bytes:
            raise InvalidResponseError("malformed_stream", f"a line or event of more than {self._max_bytes:,} bytes")
