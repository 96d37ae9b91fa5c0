"""Standard output and standard error, captured apart for each piece of concurrent work.

`sys.stdout` and `sys.stderr` are replaced once in a process.  What is written inside `capture` goes to that capture:
tasks and copied contexts inherit it, so hundreds of requests on one event loop and in threads are told apart.  Whatever
is written elsewhere goes to the streams as before.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Literal, Protocol

MAX_STREAM_CHARS = 20_000
"""How much is kept of what is written to a stream."""

StreamName = Literal["stdout", "stderr"]


class BoundedText:
    """The beginning and the end, `max_chars` together, of a text that is written piece by piece."""

    __slots__ = ("_half", "_head", "_n_cut", "_tail")

    def __init__(self, max_chars: int) -> None:
        self._half, self._head, self._tail, self._n_cut = max_chars // 2, "", "", 0

    def write(self, text: str) -> None:
        """Append text; the oldest of the second half makes room for it."""
        if room := self._half - len(self._head):
            self._head, text = self._head + text[:room], text[room:]
        if text:
            tail = self._tail + text
            self._tail = tail[-self._half :]
            self._n_cut += len(tail) - len(self._tail)

    @property
    def text(self) -> str:
        """The text, with a note in the place of what is left out; without lone surrogates, which UTF-8 cannot hold."""
        note = f"\n[{self._n_cut:,} characters are left out]\n" if self._n_cut else ""
        return f"{self._head}{note}{self._tail}".encode("utf-8", "replace").decode()


class Destination(Protocol):
    """Takes what is written inside `capture`."""

    def write(self, name: StreamName, text: str) -> None:
        """Take text for one of the streams."""
        ...


class CapturedOutput:
    """The output of one piece of work, for each of the two streams."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: dict[str, BoundedText] = {}

    def write(self, name: StreamName, text: str) -> None:
        """Keep text of one of the streams."""
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = BoundedText(MAX_STREAM_CHARS)
        stream.write(text)

    def __bool__(self) -> bool:
        """Whether anything was written."""
        return bool(self._streams)

    @property
    def stdout(self) -> str:
        """The text for standard output; empty if there is none."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        """The text for standard error; empty if there is none."""
        return self._text("stderr")

    def _text(self, name: StreamName) -> str:
        stream = self._streams.get(name)
        return stream.text if stream is not None else ""


class _ToStderr:
    def write(self, name: StreamName, text: str) -> None:
        stream = sys.stderr
        (stream.stream if isinstance(stream, _RoutedStream) else stream).write(text)


TO_STDERR: Destination = _ToStderr()
"""Sends both streams to the process's standard error."""

_destination: ContextVar[Destination | None] = ContextVar("batchray_output", default=None)


class capture:  # reads as a function, and is a class because it is entered for every call of a tool
    """A block whose output goes to `destination`."""

    __slots__ = ("_destination", "_token")

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    def __enter__(self) -> None:
        self._token: Token[Destination | None] = _destination.set(self._destination)

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _destination.reset(self._token)


def is_capturing() -> bool:
    """Whether this code runs inside `capture`."""
    return _destination.get() is not None


class _RoutedStream:
    """Takes the place of `sys.stdout` or `sys.stderr`: writes to the capture of the running code, if it has one."""

    def __init__(self, name: StreamName, stream: Any) -> None:
        self.name_in_sys, self.stream = name, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (sys, self.name_in_sys)  # functions that are sent to another process use the stream there

    def write(self, text: str) -> int:
        destination = _destination.get()
        if destination is None:
            return self.stream.write(text)  # type: ignore[no-any-return]
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        destination.write(self.name_in_sys, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if _destination.get() is None:
            self.stream.flush()

    def close(self) -> None:
        if _destination.get() is None:
            self.stream.close()

    def isatty(self) -> bool:
        return _destination.get() is None and bool(self.stream.isatty())

    @property
    def buffer(self) -> Any:
        return self.stream.buffer if _destination.get() is None else _RoutedBytes(self)


class _RoutedBytes:
    """The binary side of a routed stream inside a capture."""

    def __init__(self, stream: _RoutedStream) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream.stream.buffer, name)

    def write(self, data: bytes) -> int:
        self._stream.write(bytes(data).decode("utf-8", "replace"))
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


def route_streams() -> None:
    """Make `capture` work in this process.  Calling it again changes nothing, unless a stream was replaced meanwhile.

    Handlers of the root logger that write to a replaced stream follow it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, _RoutedStream):
            continue
        routed: Any = _RoutedStream(name, stream)
        setattr(sys, name, routed)
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(routed)
