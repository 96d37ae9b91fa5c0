"""Replies of the loopback provider in any protocol: directives, faults, and HTTP written by hand."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import orjson

_REASONS = {200: b"OK", 404: b"Not Found", 411: b"Length Required"}

Directives = dict[str, list[str]]
Ending = Literal["keep", "abort", "hang"]


class Reply(ABC):
    """The bytes of one reply, and their timing; a subclass for each protocol.  `n_bytes` is the size of the request.

    The directives:

    - plain answers: `tokens:N`, `say:TEXT` ({results} are those of the tools), `reasoning:TEXT`,
      `finish:REASON` (in OpenAI's words), `cached:N`, `json` (not streamed), `latency:S` (to the first byte), `gap:S`
      (between events), `crlf` (line ends, and a comment before each event); of Messages alone `redacted:DATA`,
      `omitted` (the reasoning), `written:N` (to the cache), `pause` (until it is sent back)
    - tool calls, while no tool has returned yet, or in the first N answers with `steps:N`: `tool:NAME {JSON}` (several
      are parallel), `noids`, `sameids`, `badargs:TEXT`; of chat completions alone `lateids`
    - refusals: `status:CODE` or `CODE:` with `retry-after=`, `retry-after-ms=`, `code=`, `fill=N` (bytes more of
      message) and at the end `message=` ({key} and {masked} are the caller's key), `html:CODE`, `toolong`; of OpenAI's
      protocols alone `refuses:FIELD` (one that the model does not take)
    - broken answers: `reset` (in the middle, or `reset:start`, `reset:headers`), `stall` (in the middle, or
      `stall:start`), `truncate`, `badjson`, `nodone`, `wrongtype`, `nochoices` (no content), `error:CODE`,
      `longline:N`, `garbage` (no HTTP at all)
    """

    def __init__(
        self,
        request: dict[str, Any],
        asked: Directives,
        *,
        key: str = "",
        n_bytes: int = 0,
        tokens: int = 5,
        latency_s: float = 0.0,
    ) -> None:
        self._request, self._asked, self._key = request, asked, key
        self._n_prompt = max(1, n_bytes // 4)
        self.latency_s, self.gap_s = float(self._get("latency", str(latency_s))), float(self._get("gap", "0"))
        self._n_tokens = int(self._get("tokens", str(tokens)))
        self.pieces, self.ending = self._render()

    # Parts that differ between the protocols.

    @abstractmethod
    def _error(self, status: int, message: str, code: str | None) -> dict[str, Any]: ...

    @abstractmethod
    def _error_event(self, code: str) -> bytes: ...

    @abstractmethod
    def _too_long(self) -> dict[str, Any]: ...

    @abstractmethod
    def _broken_event(self) -> bytes: ...

    @abstractmethod
    def _events(self) -> list[bytes]:
        """Return the events of the content."""

    @abstractmethod
    def _last_events(self) -> list[bytes]:
        """Return the events that end the reply, including the end mark."""

    @abstractmethod
    def _empty_events(self) -> list[bytes]: ...

    @abstractmethod
    def _whole_answer(self) -> dict[str, Any]: ...

    @abstractmethod
    def _results(self) -> list[str]:
        """Return the results of tools at the end of the conversation."""

    # Parts that all protocols share.

    def _turns(self) -> list[dict[str, Any]]:
        """Return the conversation as messages with roles."""
        return list(self._request["messages"])

    def _get(self, name: str, default: str = "") -> str:
        return self._asked[name][0] if name in self._asked else default

    def _render(self) -> tuple[Sequence[bytes], Ending]:
        asked = self._asked
        if self._get("stall") == "start":
            return [], "hang"
        if self._get("reset") == "start":
            return [], "abort"
        if self._get("reset") == "headers":
            return [head(200)[:-20]], "abort"
        if "garbage" in asked:
            return [b"220 mail.example ESMTP\r\n\r\n"], "keep"
        if "wrongtype" in asked:
            return [whole(200, b"<html>hello</html>", b"text/html")], "keep"
        if (refusal := self._refusal()) is not None:
            return [refusal], "keep"
        if "json" in asked or not self._request.get("stream"):
            if "error" in asked:
                return [whole(200, self._error(200, "broke off", self._get("error")))], "keep"
            return [whole(200, self._whole_answer())], "keep"
        return self._stream()

    def _refusal(self) -> bytes | None:
        if "html" in self._asked:
            return whole(int(self._get("html")), b"<html><h1>Bad Gateway</h1></html>", b"text/html")
        if "toolong" in self._asked:
            return whole(400, self._too_long())
        named = next((name for name in self._asked if name.isdigit()), None)
        if named is None and "status" not in self._asked:
            return None
        options, _, message = self._get(named or "status").partition("message=")
        words = options.split()
        status = int(named or words.pop(0))
        given = dict(word.split("=", 1) for word in words)
        key = self._key
        message = message.replace("{key}", key).replace("{masked}", f"{key[:8]}****{key[-4:]}")
        message += "x" * int(given.pop("fill", 0))
        body = self._error(status, message or f"asked for status {status}", given.pop("code", None))
        return whole(status, body, extra=given)

    def _stream(self) -> tuple[Sequence[bytes], Ending]:
        asked, events = self._asked, self._events()
        half = events[: max(1, len(events) // 2)]
        if "reset" in asked or "stall" in asked:
            return [head(200), *map(chunk, half)], "abort" if "reset" in asked else "hang"
        if "badjson" in asked:
            events = [*half, self._broken_event(), *self._last_events()]
        elif "longline" in asked:
            events = [*half, b"data: " + b"x" * int(self._get("longline")) + b"\n\n", *self._last_events()]
        elif "error" in asked:
            events = [*half, self._error_event(self._get("error"))]
        elif "nochoices" in asked:
            events = self._empty_events()
        elif "truncate" in asked:
            events = half
        else:
            events += self._last_events()[: -1 if "nodone" in asked else None]
        if "crlf" in asked:
            events = [b": keep-alive\r\n\r\n" + event.replace(b"\n", b"\r\n") for event in events]
        pieces = [*map(chunk, events), b"0\r\n\r\n"]
        return ([head(200), *pieces] if self.gap_s else [head(200) + b"".join(pieces)]), "keep"

    def _has_results(self) -> bool:
        return bool(self._results())

    def _said(self) -> list[str]:
        if "say" not in self._asked:
            return [f"tok{i} " for i in range(self._n_tokens)]
        return split_words(self._get("say").replace("{results}", " ".join(self._results())))

    def _tools(self) -> list[tuple[str, str, str]]:
        """(id, name, arguments) of each tool call that is asked for."""
        turns = self._turns()
        n_answered = sum(message["role"] == "assistant" for message in turns)
        if self._has_results() and n_answered >= int(self._get("steps", "1")):
            return []
        named = [tool.partition(" ")[::2] for tool in self._asked.get("tool", ())]
        named += [("calculate", text or '{"expression": ') for text in self._asked.get("badargs", ())]
        stem = f"{len(turns)}"
        ids = ["" if "noids" in self._asked else f"call_{stem}_{i}" for i in range(len(named))]
        if "sameids" in self._asked:
            ids = ["call_same"] * len(named)
        return [(call_id, name, arguments) for call_id, (name, arguments) in zip(ids, named, strict=True)]


def text_of(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def split_words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def head(status: int) -> bytes:
    return b"HTTP/1.1 %d OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" % status


def whole(
    status: int, body: Any, content_type: bytes = b"application/json", extra: dict[str, str] | None = None
) -> bytes:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    top = b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n" % (
        status,
        _REASONS.get(status, b"Asked For"),
        content_type,
        len(data),
    )
    for name, value in (extra or {}).items():
        top += f"{name}: {value.replace('_', ' ')}\r\n".encode()
    return top + b"\r\n" + data
