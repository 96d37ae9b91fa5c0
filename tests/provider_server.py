"""A provider on loopback with OpenAI's chat completions and Responses and Anthropic's Messages, and faults on demand.

It records its calls, and rejects malformed conversations as Anthropic's API and OpenAI's Responses do.

Directives in double square brackets, in the last user message or in the model's name, control a reply:

    [[status:500]]  [[429:retry-after=0.05 x2]]  [[stall]]  [[tool:calculate {"expression": "1 + 1"}]]  [[latency:2.0]]

` x2` limits a directive to the first two calls with that text; later calls ignore it.  `Reply` lists all directives.
With a `fault_rate`, calls also fail at random with temporary errors.  The server writes HTTP by hand on an asyncio
protocol: a whole reply is one write of prepared bytes, which is cheap enough for benchmarks, and a reply can break at
any byte.

    async with ProviderServer() as server: ...            # on the test's own loop
    with run_in_thread() as server: ...                   # next to a sync test
    python -m tests.provider_server --port 0 --tokens 50 --latency 2.0     # a process; prints its port
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import random
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from tests.provider_chat import CREATED, ChatReply, chat_error
from tests.provider_messages import MessagesReply
from tests.provider_replies import Directives, Ending, Reply, text_of, whole
from tests.provider_responses import ResponsesReply, turns

MAX_CALLS = 200_000
"""Only the newest calls are kept."""

_DIRECTIVE = re.compile(r"\[\[(\w+)(?::(.*?))?(?: x(\d+))?\]\](?!\])", re.DOTALL)
_NO_LINGER = struct.pack("ii", 1, 0)
_REPLIES: dict[str, type[Reply]] = {
    "/v1/chat/completions": ChatReply,
    "/v1/messages": MessagesReply,
    "/v1/responses": ResponsesReply,
}
_PASSING_FAULTS = (
    "429:",
    "status:500",
    "html:502",
    "status:503",
    "status:529",
    "reset:start",
    "reset:headers",
    "reset",
)


@dataclass(frozen=True)
class Call:
    """One call of the ledger.  `at` is when the request had come in whole, in seconds of the server's clock."""

    at: float
    text: str
    model: str
    authorization: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    body: dict[str, Any] = field(default_factory=dict, repr=False)


class ProviderServer:
    """The server.

    `tokens` are those of a plain answer, `latency_s` the time to its first byte, `fault_rate` the part of the calls
    that fail; how many of n calls do is the same for each `seed`.  `clock` gives the seconds of the ledger.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        tokens: int = 5,
        latency_s: float = 0.0,
        fault_rate: float = 0.0,
        seed: int = 1,
        clock: Callable[[], float] = time.monotonic,
        keeps_bodies: bool = True,
    ) -> None:
        self.port, self.tokens, self.latency_s, self.keeps_bodies = port, tokens, latency_s, keeps_bodies
        self.always = ""
        """Directives for every call, such as `[[status:401]]`, while they are set."""
        self._fault_rate, self._rng, self._clock = fault_rate, random.Random(seed), clock
        self.n_calls = self.n_in_flight = self.max_in_flight = self.n_connections = 0
        self.connections: set[_Connection] = set()
        self._calls: deque[Call] = deque(maxlen=MAX_CALLS)
        self._seen: Counter[tuple[str, str]] = Counter()
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        """The base URL of chat completions and of Responses."""
        return f"{self.root_url}/v1"

    @property
    def root_url(self) -> str:
        """The base URL of Messages."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[Call]:
        """The recorded calls, oldest first."""
        return list(self._calls)

    def clear(self) -> None:
        """Forget all calls, and count for ` xN` from zero again."""
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

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        """Record one call, and return its reply."""
        request = orjson.loads(body)
        messages = turns(request["input"]) if "input" in request else request["messages"]
        text, model = _last_user_text(messages), request["model"]
        authorization = headers.get("authorization") or headers.get("x-api-key", "")
        kept = (headers, request) if self.keeps_bodies else ({}, {})
        self._calls.append(Call(self._clock(), text, model, authorization, *kept))
        self.n_calls += 1
        fault = f"[[{self._rng.choice(_PASSING_FAULTS)}]]" if self._rng.random() < self._fault_rate else ""
        return _REPLIES[path](
            request,
            self._directives(f"{self.always}{fault}{model}\n{text}"),
            key=authorization.removeprefix("Bearer "),
            n_bytes=len(body),
            tokens=self.tokens,
            latency_s=self.latency_s,
        )

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
        method, target, _ = request_line.split(" ", 2)
        self._route(method, target.partition("?")[0], headers, body)

    def _route(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        server = self._server
        if method == "POST" and path in _REPLIES:
            self._is_answering = True
            server.n_in_flight += 1
            server.max_in_flight = max(server.max_in_flight, server.n_in_flight)
            self._send(server.answer(path, headers, body))
        elif path == "/ledger" and method in ("GET", "DELETE"):
            self._transport.write(whole(200, server.ledger()))
            if method == "DELETE":
                server.clear()
        elif (method, path) == ("GET", "/v1/models"):
            model = {"id": "any", "object": "model", "created": CREATED, "owned_by": "tests"}
            self._transport.write(whole(200, {"object": "list", "data": [model]}))
        else:
            self._transport.write(whole(404, chat_error(f"no route {method} {path}", "invalid_request_error")))

    def _send(self, reply: Reply) -> None:
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


def _last_user_text(messages: list[dict[str, Any]]) -> str:
    texts = (text_of(each["content"]) for each in reversed(messages) if each["role"] == "user")
    return next(filter(None, texts), "")  # Anthropic's results of tools are user messages without text


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
