"""A provider on loopback that speaks OpenAI's chat completions, with faults on demand and a ledger of its calls.

What it does is asked for in the last user message, or in the model's name, by directives in double square brackets:

    [[status:500]]  [[429:retry-after=0.05 x2]]  [[stall]]  [[tool:calculate {"expression": "1 + 1"}]]  [[latency:2.0]]

` x2` limits a directive to the first two calls with that text; the others then go as if it were not there.  See
`_Reply` for all of them.  It writes HTTP by hand on an asyncio protocol: a whole answer is one write of bytes rendered
before, which keeps it cheap enough to measure against, and a broken answer can be broken at any byte.

    async with ProviderServer() as server: ...            # on the test's own loop
    with run_in_thread() as server: ...                   # beside a sync test
    python -m tests.provider_server --port 0 --tokens 50 --latency 2.0     # a process; prints its port
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import orjson

MAX_CALLS = 200_000
"""The ledger keeps the newest calls."""

_DIRECTIVE = re.compile(r"\[\[(\w+)(?::(.*?))?(?: x(\d+))?\]\](?!\])", re.DOTALL)
_NO_LINGER = struct.pack("ii", 1, 0)
_CREATED = 1_700_000_000
_DONE = b"data: [DONE]\n\n"
_REASONS = {200: b"OK", 404: b"Not Found", 411: b"Length Required"}

Directives = dict[str, list[str]]
Ending = Literal["keep", "abort", "hang"]


@dataclass(frozen=True)
class Call:
    """One call of the ledger.  `at` is monotonic seconds, when the request had come in whole."""

    at: float
    text: str
    model: str
    authorization: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    body: dict[str, Any] = field(default_factory=dict, repr=False)


class ProviderServer:
    """The server.  `tokens` are those of a plain answer, `latency_s` the time to its first byte."""

    def __init__(self, *, port: int = 0, tokens: int = 5, latency_s: float = 0.0, keeps_bodies: bool = True) -> None:
        self.port, self.tokens, self.latency_s, self.keeps_bodies = port, tokens, latency_s, keeps_bodies
        self.n_calls = self.n_in_flight = self.max_in_flight = self.n_connections = 0
        self.connections: set[_Connection] = set()
        self._calls: deque[Call] = deque(maxlen=MAX_CALLS)
        self._seen: Counter[tuple[str, str]] = Counter()
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def calls(self) -> list[Call]:
        """The ledger, oldest first."""
        return list(self._calls)

    def clear(self) -> None:
        """Empty the ledger; the counts behind ` xN` begin anew."""
        self._calls.clear()
        self._seen.clear()
        self.n_calls, self.max_in_flight = 0, self.n_in_flight

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.abort()
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def answer(self, headers: dict[str, str], body: bytes) -> _Reply:
        """Enter one call into the ledger and say what to answer."""
        request = orjson.loads(body)
        text, model = _last_user_text(request["messages"]), request["model"]
        authorization = headers.get("authorization", "")
        kept = (headers, request) if self.keeps_bodies else ({}, {})
        self._calls.append(Call(time.monotonic(), text, model, authorization, *kept))
        self.n_calls += 1
        return _Reply(self, request, authorization, self._directives(f"{model}\n{text}"), len(body))

    def ledger(self) -> dict[str, Any]:
        """The ledger as plain data, without bodies."""
        fields = ("at", "text", "model", "authorization")
        calls = [{name: getattr(call, name) for name in fields} for call in self.calls]
        return {"n_calls": self.n_calls, "max_in_flight": self.max_in_flight, "calls": calls}

    def _directives(self, text: str) -> Directives:
        found: Directives = {}
        if "[[" in text:
            for match in _DIRECTIVE.finditer(text):
                name, argument, limit = match.groups()
                if limit:
                    self._seen[text, match[0]] += 1
                    if self._seen[text, match[0]] > int(limit):
                        continue
                found.setdefault(name, []).append(argument or "")
        return found


class _Connection(asyncio.Protocol):
    """One client's connection: requests in, one after the other, and their answers out."""

    def __init__(self, server: ProviderServer) -> None:
        self._server = server
        self._buffer = b""
        self._timers: list[asyncio.TimerHandle] = []
        self._is_answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)
        self._server.n_connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        for timer in self._timers:
            timer.cancel()
        self._finish()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._is_answering:
            return
        request_line, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(self._buffer) < end + 4 + length:
            return
        body, self._buffer = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
        method, path, _ = request_line.split(" ", 2)
        self._route(method, path, headers, body)

    def _route(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        server = self._server
        if (method, path) == ("POST", "/v1/chat/completions"):
            self._is_answering = True
            server.n_in_flight += 1
            server.max_in_flight = max(server.max_in_flight, server.n_in_flight)
            self._send(server.answer(headers, body))
        elif path == "/ledger" and method in ("GET", "DELETE"):
            self._transport.write(_whole(200, server.ledger()))
            if method == "DELETE":
                server.clear()
        elif (method, path) == ("GET", "/v1/models"):
            model = {"id": "any", "object": "model", "created": _CREATED, "owned_by": "tests"}
            self._transport.write(_whole(200, {"object": "list", "data": [model]}))
        else:
            self._transport.write(_whole(404, _error_body(f"no route {method} {path}", "invalid_request_error")))

    def _send(self, reply: _Reply) -> None:
        if not reply.gap_s:
            self._later(reply.latency_s, functools.partial(self._write, b"".join(reply.pieces), reply.ending))
            return
        for i, piece in enumerate(reply.pieces):
            ending = reply.ending if i == len(reply.pieces) - 1 else "hang"
            self._later(reply.latency_s + i * reply.gap_s, functools.partial(self._write, piece, ending))

    def _write(self, data: bytes, ending: Ending) -> None:
        self._transport.write(data)
        if ending == "keep":
            self._finish()
        elif ending == "abort":
            # Without lingering, closing sends a reset rather than an orderly end.
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        if delay_s <= 0:
            action()
        else:
            self._timers.append(asyncio.get_running_loop().call_later(delay_s, action))

    def _finish(self) -> None:
        if self._is_answering:
            self._is_answering = False
            self._timers.clear()
            self._server.n_in_flight -= 1


class _Reply:
    """What to write, and when.  These are the directives:

    - plain answers: `tokens:N`, `say:TEXT`, `reasoning:TEXT`, `finish:REASON`, `cached:N`, `json` (not streamed),
      `latency:S` (to the first byte), `gap:S` (between events), `crlf` (line ends, and a comment before each event)
    - tool calls, while no tool has returned yet: `tool:NAME {JSON}` (several are parallel), `noids`, `sameids`,
      `lateids`, `badargs:TEXT`
    - refusals: `status:CODE` or `CODE:` with `retry-after=`, `retry-after-ms=`, `code=`, `fill=N` (bytes more of
      message) and at the end `message=` ({key} and {masked} are the caller's key), `html:CODE`
    - broken answers: `reset` (in the middle, or `reset:start`), `stall` (likewise), `truncate`, `badjson`, `nodone`,
      `wrongtype`, `nochoices`, `error:CODE`, `longline:N`, `garbage` (no HTTP at all)
    """

    def __init__(
        self, server: ProviderServer, request: dict[str, Any], authorization: str, asked: Directives, n_bytes: int
    ) -> None:
        self._request, self._authorization, self._asked = request, authorization, asked
        self._n_prompt = max(1, n_bytes // 4)
        self.latency_s, self.gap_s = float(self._get("latency", str(server.latency_s))), float(self._get("gap", "0"))
        self._n_tokens = int(self._get("tokens", str(server.tokens)))
        self.pieces, self.ending = self._render()

    def _get(self, name: str, default: str = "") -> str:
        return self._asked[name][0] if name in self._asked else default

    def _render(self) -> tuple[Sequence[bytes], Ending]:
        asked = self._asked
        if not asked and self._request.get("stream"):
            is_counted = bool((self._request.get("stream_options") or {}).get("include_usage"))
            return [_plain(self._request["model"], self._n_tokens, self._n_prompt, is_counted)], "keep"
        if self._get("stall") == "start":
            return [], "hang"
        if self._get("reset") == "start":
            return [], "abort"
        if "garbage" in asked:
            return [b"220 mail.example ESMTP\r\n\r\n"], "keep"
        if "wrongtype" in asked:
            return [_whole(200, b"<html>hello</html>", b"text/html")], "keep"
        if (refusal := self._refusal()) is not None:
            return [refusal], "keep"
        if "json" in asked or not self._request.get("stream"):
            if "error" in asked:
                return [_whole(200, _error_body("broke off", self._get("error")))], "keep"
            return [_whole(200, self._whole_answer())], "keep"
        return self._stream()

    def _refusal(self) -> bytes | None:
        if "html" in self._asked:
            return _whole(int(self._get("html")), b"<html><h1>Bad Gateway</h1></html>", b"text/html")
        named = next((name for name in self._asked if name.isdigit()), None)
        if named is None and "status" not in self._asked:
            return None
        options, _, message = self._get(named or "status").partition("message=")
        words = options.split()
        status = int(named or words.pop(0))
        given = dict(word.split("=", 1) for word in words)
        key = self._authorization.removeprefix("Bearer ")
        message = message.replace("{key}", key).replace("{masked}", f"{key[:8]}****{key[-4:]}")
        message += "x" * int(given.pop("fill", 0))
        body = _error_body(message or f"asked for status {status}", given.pop("code", None))
        return _whole(status, body, extra=given)

    def _stream(self) -> tuple[Sequence[bytes], Ending]:
        asked, events = self._asked, self._events()
        half = events[: max(1, len(events) // 2)]
        if "reset" in asked or "stall" in asked:
            return [_head(200), *map(_chunk, half)], "abort" if "reset" in asked else "hang"
        if "badjson" in asked:
            events = [*half, b'data: {"id": "chatcmpl-1", "choices": [{"ind\n\n', _DONE]
        elif "longline" in asked:
            events = [*half, b"data: " + b"x" * int(self._get("longline")) + b"\n\n", _DONE]
        elif "error" in asked:
            code = self._get("error")
            events = [*half, b"data: " + orjson.dumps(_error_body(f"broke off with {code}", code)) + b"\n\n"]
        elif "nochoices" in asked:
            events = [self._event({}, choices=[]), _DONE]
        elif "truncate" in asked:
            events = half
        else:
            events += self._last_events()
        if "crlf" in asked:
            events = [b": keep-alive\r\n\r\n" + event.replace(b"\n", b"\r\n") for event in events]
        pieces = [*map(_chunk, events), b"0\r\n\r\n"]
        return ([_head(200), *pieces] if self.gap_s else [_head(200) + b"".join(pieces)]), "keep"

    def _events(self) -> list[bytes]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": word} for word in _words(self._get("reasoning"))]
        tools = self._tools()
        if not tools:
            deltas += [{"content": word} for word in self._said()]
        return [self._event(delta) for delta in (*deltas, *self._tool_deltas(tools))]

    def _said(self) -> list[str]:
        return _words(self._get("say")) if "say" in self._asked else [f"tok{i} " for i in range(self._n_tokens)]

    def _tools(self) -> list[tuple[str, str, str]]:
        """(id, name, arguments) of each tool call that is asked for."""
        if self._request["messages"][-1]["role"] == "tool":
            return []
        named = [tool.partition(" ")[::2] for tool in self._asked.get("tool", ())]
        named += [("calculate", text or '{"expression": ') for text in self._asked.get("badargs", ())]
        stem = f"{len(self._request['messages'])}"
        ids = ["" if "noids" in self._asked else f"call_{stem}_{i}" for i in range(len(named))]
        if "sameids" in self._asked:
            ids = ["call_same"] * len(named)
        return [(call_id, name, arguments) for call_id, (name, arguments) in zip(ids, named, strict=True)]

    def _tool_deltas(self, tools: list[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
        """The calls' arguments in pieces of five characters, all calls mixed; the id and name with the first piece."""
        is_late = "lateids" in self._asked
        heads = [
            {"index": i, **({"id": call_id} if call_id else {}), "type": "function", "function": {"name": name}}
            for i, (call_id, name, _) in enumerate(tools)
        ]
        yield from ({"tool_calls": [head]} for head in heads if not is_late)
        longest = max((len(arguments) for _, _, arguments in tools), default=0)
        for start in range(0, longest, 5):
            pieces = [(i, arguments[start : start + 5]) for i, (_, _, arguments) in enumerate(tools)]
            yield {"tool_calls": [{"index": i, "function": {"arguments": piece}} for i, piece in pieces if piece]}
        yield from ({"tool_calls": [head]} for head in heads if is_late)

    def _last_events(self) -> list[bytes]:
        reason = self._get("finish", "tool_calls" if self._tools() else "stop")
        events = [self._event({}, finish_reason=reason)]
        if (self._request.get("stream_options") or {}).get("include_usage"):
            events.append(self._event({}, choices=[], usage=self._usage()))
        return events if "nodone" in self._asked else [*events, _DONE]

    def _usage(self) -> dict[str, Any]:
        n_reasoning = len(_words(self._get("reasoning")))
        n_completion = n_reasoning + len(self._said())
        return _usage(self._n_prompt, n_completion, int(self._get("cached", "0")), n_reasoning)

    def _event(
        self,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        choices: list[Any] | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        return _event(self._request["model"], delta, finish_reason, choices, usage)

    def _whole_answer(self) -> dict[str, Any]:
        tools = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in self._tools()
        ]
        message: dict[str, Any] = {"role": "assistant", "content": None if tools else "".join(self._said())}
        message |= {"tool_calls": tools} if tools else {}
        message |= {"reasoning_content": self._get("reasoning")} if "reasoning" in self._asked else {}
        reason = self._get("finish", "tool_calls" if tools else "stop")
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": _CREATED,
            "model": self._request["model"],
            "choices": [] if "nochoices" in self._asked else [choice],
            "usage": self._usage(),
        }


def _last_user_text(messages: list[dict[str, Any]]) -> str:
    content = next((each["content"] for each in reversed(messages) if each["role"] == "user"), "")
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


def _error_body(message: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def _event(
    model: str,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    choices: list[Any] | None = None,
    usage: dict[str, Any] | None = None,
) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": model,
        "choices": [choice] if choices is None else choices,
        "usage": usage,
    }
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _usage(n_prompt: int, n_completion: int, n_cached: int = 0, n_reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": n_cached},
        "completion_tokens_details": {"reasoning_tokens": n_reasoning},
    }


@functools.lru_cache(maxsize=256)
def _plain(model: str, n_tokens: int, n_prompt: int, is_counted: bool) -> bytes:
    """A whole plain answer."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": f"tok{i} "} for i in range(n_tokens))]
    events = [*(_event(model, delta) for delta in deltas), _event(model, {}, "stop")]
    events += [_event(model, {}, choices=[], usage=_usage(n_prompt, n_tokens))] if is_counted else []
    return _head(200) + b"".join(map(_chunk, [*events, _DONE])) + b"0\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _head(status: int) -> bytes:
    return b"HTTP/1.1 %d OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" % status


def _whole(
    status: int, body: Any, content_type: bytes = b"application/json", extra: dict[str, str] | None = None
) -> bytes:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    head = b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n" % (
        status,
        _REASONS.get(status, b"Asked For"),
        content_type,
        len(data),
    )
    for name, value in (extra or {}).items():
        head += f"{name}: {value.replace('_', ' ')}\r\n".encode()
    return head + b"\r\n" + data


@contextlib.contextmanager
def run_in_thread(**settings: Any) -> Iterator[ProviderServer]:
    """Run a server on a loop of its own in a thread, and end both on the way out."""
    server = ProviderServer(**settings)
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with server:
            started.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()
            started.set()

    thread = threading.Thread(target=work, name="provider-server", daemon=True)
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _serve(port: int, tokens: int, latency_s: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ProviderServer(port=port, tokens=tokens, latency_s=latency_s, keeps_bodies=False) as server:
        print(server.port, flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A provider on loopback, for tests and benchmarks.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--tokens", type=int, default=50, help="tokens of a plain answer")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds to the first byte")
    asked = parser.parse_args()
    asyncio.run(_serve(asked.port, asked.tokens, asked.latency))


if __name__ == "__main__":
    main()
