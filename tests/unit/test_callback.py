from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from batchray.callbacks import (
    DELAYS_S,
    AddressGuard,
    CallbackResponse,
    CallbackSender,
    Delivery,
    DeliveryAttempt,
    Schedule,
    Signer,
    make_sender,
    payload_of,
)
from batchray.callbacks.transport import MAX_RESPONSE_BYTES, WebhookTransport
from batchray.errors import ConfigError

NOW = 1_800_000_000.0
TIMEOUT_S = 30.0
SECRET, OLD_SECRET = (f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))
BLOCKED = "the receiver has no public address, and none in an allowed network"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class MemoryOutbox:
    """An outbox in memory.  `faults` are raised by the next calls, by method name."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[Delivery, float]] = {}
        self.attempts: list[tuple[str, DeliveryAttempt]] = []
        self.faults: list[str] = []
        self._changed = asyncio.Condition()

    def put(self, url: str, job_id: str = "job-1", at: float = 0.0) -> None:
        payload = b'{"job_id":"%s"}' % job_id.encode()
        self.rows[job_id] = (Delivery(job_id, "then", job_id, url, payload, 0), at)

    async def due(self, now: float, limit: int) -> list[Delivery]:
        await self._fail_at("due")
        return [delivery for delivery, at in sorted(self.rows.values(), key=lambda row: row[1]) if at <= now][:limit]

    async def record(self, delivery: Delivery, attempt: DeliveryAttempt) -> None:
        await self._fail_at("record")
        self.attempts.append((delivery.job_id, attempt))
        del self.rows[delivery.job_id]
        if attempt.next_at is not None:
            self.rows[delivery.job_id] = (replace(delivery, n_attempts=delivery.n_attempts + 1), attempt.next_at)
        await self._wake()

    async def next_due_at(self) -> float | None:
        return min((at for _, at in self.rows.values()), default=None)

    async def attempt(self, number: int = 1) -> DeliveryAttempt:
        """Wait for the attempt of this number and return it."""
        await self.until(lambda: len(self.attempts) >= number)
        return self.attempts[number - 1][1]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S), self._changed:
            await self._changed.wait_for(is_so)

    async def _fail_at(self, method: str) -> None:
        if method in self.faults:
            self.faults.remove(method)
            await self._wake()
            raise RuntimeError("the disk is full")

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class Receiver:
    """A receiver on loopback.  It gives `answers` in order and repeats the last: each a status or a handler."""

    def __init__(self, *answers: int | Handler) -> None:
        self.answers = list(answers) or [200]
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.n_connections = self.port = 0
        self.came = asyncio.Semaphore(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.bodies.append(await request.read())
        assert request.method == "POST"
        self.came.release()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=answer) if isinstance(answer, int) else await answer(request)

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)

        def connected() -> asyncio.BaseProtocol:
            self.n_connections += 1
            return server()

        listener = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0, ssl=tls)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            await server.shutdown(0)
            await listener.wait_closed()


class Names(AbstractResolver):
    """A name server that gives these answers in order and repeats the last: each a list of addresses."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.n_asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.n_asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        pass


class Sockets:
    """Creates the sockets of a guard and counts them.  With `is_dead`, none of them can connect."""

    def __init__(self, *, is_dead: bool = False) -> None:
        self.n_made, self.is_dead = 0, is_dead

    def __call__(self, family: int, kind: int, protocol: int) -> socket.socket:
        self.n_made += 1
        if self.is_dead:
            raise ConnectionRefusedError(111, "Connection refused")
        return socket.socket(family, kind, protocol)


def loopback(make_socket: Callable[[int, int, int], socket.socket] = socket.socket) -> AddressGuard:
    return AddressGuard(["127.0.0.0/8"], make_socket)


@asynccontextmanager
async def sending(outbox: MemoryOutbox, transport: Any = None, **settings: Any) -> AsyncIterator[CallbackSender]:
    clock = settings.setdefault("clock", Clock())
    transport = transport or WebhookTransport(loopback(), limit_s=TIMEOUT_S, clock=clock)
    sender = CallbackSender(outbox, transport, **{"rng": random.Random(1), **settings})
    running = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        await sender.close(grace_s=0)
        await asyncio.wait_for(running, TIMEOUT_S)


@asynccontextmanager
async def posting(
    guard: AddressGuard | None = None, **settings: Any
) -> AsyncIterator[Callable[[str], Awaitable[CallbackResponse]]]:
    transport = WebhookTransport(guard or loopback(), **{"limit_s": TIMEOUT_S, **settings})
    try:
        yield lambda url: transport.post(url, b"{}", {})
    finally:
        await transport.close()


async def sent(url: str, **settings: Any) -> CallbackResponse:
    async with posting(**settings) as post:
        return await post(url)


@pytest.fixture
def outbox() -> MemoryOutbox:
    return MemoryOutbox()


async def never(_request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_the_payload_is_letta_s_with_a_time_in_utc() -> None:
    at = datetime(2026, 11, 23, 20, 6, 41, 481274, timezone(timedelta(hours=1)))
    assert json.loads(payload_of("job-1", "completed", at, {"job_type": "batch_messages"})) == {
        "job_id": "job-1",
        "status": "completed",
        "completed_at": "2026-11-23T19:06:41.481274Z",
        "metadata": {"job_type": "batch_messages"},
    }
    assert json.loads(payload_of("job-1", "failed", at, None))["metadata"] is None


async def test_one_post_is_sent_and_recorded(outbox: MemoryOutbox) -> None:
    async with Receiver(204).serving() as receiver, sending(outbox) as sender:
        outbox.put(receiver.url)
        sender.wake()
        assert await outbox.attempt() == DeliveryAttempt(datetime.fromtimestamp(NOW, UTC), 204, None, None)
    (headers,) = receiver.headers
    assert (receiver.bodies, outbox.rows) == ([b'{"job_id":"job-1"}'], {})
    assert (headers["user-agent"], headers["content-type"]) == ("batchray", "application/json")
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("job-1", str(int(NOW)))
    assert not {"webhook-signature", "cookie", "authorization"} & set(headers)


@pytest.mark.parametrize("known", [SECRET, OLD_SECRET, SECRET.removeprefix("whsec_")])
async def test_a_receiver_that_knows_one_of_the_secrets_can_verify(outbox: MemoryOutbox, known: str) -> None:
    async with Receiver().serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox, signer=Signer([SECRET, OLD_SECRET]), clock=time.time):
            await outbox.attempt()
    assert Webhook(known).verify(receiver.bodies[0], receiver.headers[0]) == {"job_id": "job-1"}
    with pytest.raises(WebhookVerificationError):
        Webhook(known).verify(receiver.bodies[0] + b" ", receiver.headers[0])


def test_a_retry_has_a_new_signature_and_the_same_id() -> None:
    first, second = (Signer([SECRET]).headers("job-1", at, b"{}") for at in (NOW, NOW + 5))
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-signature"] != second["webhook-signature"]


@given(st.binary(min_size=24, max_size=64), st.text(st.characters(categories=["L", "N", "S"])))
def test_signatures_match_the_standardwebhooks_package(key: bytes, text: str) -> None:
    headers = Signer([base64.b64encode(key).decode()]).headers("job-1", NOW, text.encode())
    assert headers["webhook-signature"] == Webhook(key).sign("job-1", datetime.fromtimestamp(NOW, UTC), text)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsk_" + "A" * 32, "p@ssword", "pässwörd", "whsec_c2hvcnQ="])
def test_an_invalid_secret_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(ConfigError, match=r"callback secret 2 (is not base64|has \d+ bytes)") as raised:
        Signer([SECRET, secret])
    assert not secret or secret not in str(raised.value)


# --- when it is sent again -------------------------------------------------------------------------------------------


async def test_the_default_schedule_makes_ten_attempts_over_three_days(outbox: MemoryOutbox) -> None:
    clock = Clock()
    async with Receiver(500).serving() as receiver, sending(outbox, clock=clock) as sender:
        outbox.put(receiver.url)
        for number, delay_s in enumerate(DELAYS_S, start=1):
            sender.wake()
            attempt = await outbox.attempt(number)
            assert (attempt.status_code, attempt.error) == (500, "the receiver answered with status 500")
            assert attempt.next_at is not None
            assert 0.8 * delay_s <= attempt.next_at - clock.now <= 1.2 * delay_s
            clock.now = attempt.next_at
        sender.wake()
        last = await outbox.attempt(10)
    assert (last.next_at, last.error) == (None, "the receiver answered with status 500; given up after 10 attempts")
    assert (len(receiver.bodies), outbox.rows) == (10, {})
    assert 0.8 * 3 * 86400 < clock.now - NOW < 1.2 * 3.2 * 86400


@given(st.integers(), st.lists(st.floats(0, 1e9), max_size=12), st.floats(0, 1))
def test_each_wait_is_its_delay_within_the_jitter(seed: int, delays_s: list[float], jitter: float) -> None:
    schedule, rng = Schedule(tuple(delays_s), jitter), random.Random(seed)
    for n_attempts, delay_s in enumerate(delays_s, start=1):
        wait_s = schedule.wait_s(n_attempts, rng)
        assert wait_s is not None
        assert wait_s == pytest.approx(delay_s, rel=jitter + 1e-9)
    assert schedule.wait_s(len(delays_s) + 1, rng) is None


@given(st.integers(), st.floats(0, 1e9))
def test_a_receiver_that_asks_to_wait_is_obeyed_up_to_a_day(seed: int, asked_s: float) -> None:
    wait_s = Schedule((5.0,)).wait_s(1, random.Random(seed), asked_s)
    assert wait_s is not None
    assert min(asked_s, 86400) <= wait_s <= max(6, 1.2 * 86400)


@pytest.mark.parametrize("delay_s", [-1, float("inf"), float("nan")])
def test_a_negative_or_infinite_delay_is_refused(delay_s: float) -> None:
    with pytest.raises(ConfigError, match="callback delay"):
        Schedule((5, delay_s))


@pytest.mark.parametrize("status", [429, 503, 404])
async def test_retry_after_is_obeyed(outbox: MemoryOutbox, status: int) -> None:
    async def busy(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers={"Retry-After": "900"})

    async with Receiver(busy).serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox):
            attempt = await outbox.attempt()
    assert attempt.status_code == status
    assert attempt.next_at is not None
    assert NOW + 900 <= attempt.next_at <= NOW + 900 * 1.2


async def test_a_receiver_that_answers_410_gets_no_more_attempts(outbox: MemoryOutbox) -> None:
    async with Receiver(410).serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox):
            attempt = await outbox.attempt()
    error = "the receiver answered with status 410: it wants no callbacks any more"
    assert (attempt.status_code, attempt.next_at, attempt.error, outbox.rows) == (410, None, error, {})


async def test_a_failed_callback_is_sent_again_at_its_time_without_a_wake(outbox: MemoryOutbox) -> None:
    async with Receiver(500, 200).serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox, schedule=Schedule((0.01,)), clock=time.time):
            assert [(await outbox.attempt(n)).status_code for n in (1, 2)] == [500, 200]
    assert receiver.bodies[0] == receiver.bodies[1]


async def test_a_schedule_without_delays_is_one_attempt(outbox: MemoryOutbox) -> None:
    async with Receiver(500).serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox, schedule=Schedule(())):
            attempt = await outbox.attempt()
    assert (attempt.next_at, attempt.error) == (None, "the receiver answered with status 500; given up after 1 attempt")


# --- one attempt and its limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(status: int) -> None:
    async def elsewhere(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": "http://169.254.169.254/latest/meta-data/"})

    sockets = Sockets()
    async with Receiver(elsewhere).serving() as receiver:
        answer = await sent(receiver.url, guard=loopback(sockets))
    assert answer == CallbackResponse(
        status, f"the receiver answered with status {status}, and redirects are not followed"
    )
    assert (sockets.n_made, len(receiver.bodies)) == (1, 1)


async def test_a_receiver_that_does_not_respond_times_out() -> None:
    async with Receiver(never).serving() as receiver:
        answer = await sent(receiver.url, limit_s=0.05)
    assert answer == CallbackResponse(None, "the receiver gave no answer within 0.05 s")


async def test_at_most_64_kib_of_a_response_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 10_000)

    n_read, read = 0, aiohttp.StreamReader.read

    async def counting(reader: aiohttp.StreamReader, n: int = -1) -> bytes:
        nonlocal n_read
        chunk = await read(reader, n)
        n_read += len(chunk)
        return chunk

    async with Receiver(endless).serving() as receiver:
        monkeypatch.setattr(aiohttp.StreamReader, "read", counting)
        answer = await sent(receiver.url)
    assert (answer, n_read) == (CallbackResponse(200, None), MAX_RESPONSE_BYTES)


async def test_a_response_cut_off_after_its_status_counts() -> None:
    async def broken(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        assert request.transport is not None
        request.transport.close()
        return response

    async with Receiver(broken).serving() as receiver:
        assert await sent(receiver.url) == CallbackResponse(200, None)


async def test_cookies_are_not_kept() -> None:
    async def sticky(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(headers={"Set-Cookie": "session=1; Path=/"})

    async with Receiver(sticky).serving() as receiver, posting() as post:
        await post(receiver.url.replace("127.0.0.1", "localhost"))
        await post(receiver.url.replace("127.0.0.1", "localhost"))
    assert len(receiver.headers) == 2
    assert not any("cookie" in headers for headers in receiver.headers)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver().serving() as proxy, Receiver(204).serving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert (await sent(receiver.url)).status_code == 204
    assert proxy.n_connections == 0


async def test_an_untrusted_certificate_is_refused() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with Receiver().serving(tls) as receiver:
        answer = await sent(receiver.url.replace("http:", "https:"))
    assert answer.status_code is None
    assert (answer.error or "").startswith("no secure connection to the receiver: its certificate is not valid: ")
    assert receiver.bodies == []


async def test_https_to_a_receiver_without_tls_fails() -> None:
    async with Receiver().serving() as receiver:
        answer = await sent(receiver.url.replace("http:", "https:"))
    assert (answer.error or "").startswith("no secure connection to the receiver: ")
    assert receiver.bodies == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", "the receiver ended the connection without an answer"),
        (b"220 smtp\r\n", "the receiver's answer is not HTTP"),
    ],
)
async def test_an_invalid_response_is_one_sentence(text: bytes, error: str) -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await sent(f"http://127.0.0.1:{port}/") == CallbackResponse(None, error)


@contextmanager
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and never listens
        yield bound.getsockname()[1]


async def test_a_password_in_the_url_is_used_and_never_shown(
    outbox: MemoryOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Receiver(500).serving() as receiver:
        with closed_port() as port:
            for n, place in enumerate(
                (
                    f"127.0.0.1:{receiver.port}",
                    f"127.0.0.1:{port}",
                    "10.0.0.1",
                    "127.1",
                    "[",
                    "h:99999",
                    "x" * 64 + ".a",
                )
            ):
                outbox.put(f"http://anselm:hunter2@{place}/hook?token=hunter2", f"job-{n}")
            outbox.put("http://anselm:hunter2\u20ac@127.0.0.1/", "job-euro")
            async with sending(outbox):
                await outbox.attempt(8)
    shown = caplog.text + "".join(attempt.error or "" for _, attempt in outbox.attempts)
    assert "hunter2" not in shown
    assert "anselm" not in shown
    assert receiver.headers[0]["authorization"] == f"Basic {base64.b64encode(b'anselm:hunter2').decode()}"


# --- which addresses are connected to --------------------------------------------------------------------------------

SPELLINGS = (
    # loopback
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "127.255.255.254",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0x7F.0.0.1",
    "0x7f.1",
    "0177.0.0.1",
    "0177.0.0.0x1",
    "127.0.0.1.",
    "127。0。0。1",
    "①②⑦.0.0.1",
    "%31%32%37.0.0.1",
    "localhost",
    "LOCALHOST.",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::127.0.0.1]",
    "[::1%25lo]",
    "[::1%lo]",
    # this host
    "0",
    "0.0.0.0",
    "0x0",
    "[::]",
    # IPv4 inside IPv6
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:a9fe:a9fe]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::a9fe:a9fe]",
    "[64:ff9b:1:7f00:0:100::]",
    "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]",
    "[2001:0:7f00:1::]",
    # metadata services
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.0251.0376",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "[fd00:ec2::254]",
    "[fe80::a9fe:a9fe]",
    "[fe80::1%25eth0]",
    # private, shared, special
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.257",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "192.88.99.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "[fc00::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[ff0e::1]",
    "[100::1]",
    "[2001:db8::1]",
    "[2001:2::1]",
    "[2001:10::1]",
    "[2001:20::1]",
    "[3fff::1]",
    "[5f00::1]",
    "[2606:4700:4700::1111%25lo]",
)


@pytest.mark.parametrize("host", SPELLINGS)
async def test_a_private_address_is_refused_in_any_spelling(host: str) -> None:
    sockets = Sockets()
    async with Receiver().serving() as receiver:
        answer = await sent(f"http://{host}:{receiver.port}/", guard=AddressGuard(make_socket=sockets))
    assert (sockets.n_made, receiver.n_connections) == (0, 0)
    assert answer.error in (BLOCKED, "the callback URL cannot be used")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0x7f000001", "0x7f.1", "0177.0.0.0x1", "localhost", "[::ffff:127.0.0.1]"]
)
async def test_an_allowed_network_is_accepted_in_any_spelling(host: str) -> None:
    async with Receiver().serving() as receiver:
        assert await sent(f"http://{host}:{receiver.port}/") == CallbackResponse(200, None)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::1", "127.0.0.1", "10.0.0.1", "fd00:ec2::254"],  # several: they are tried in a race
        ["fe80::1%lo"],
        ["localhost"],  # a resolver that gives names: the system would look them up
        ["127.1"],
    ],
)
async def test_a_name_that_resolves_to_a_private_address_is_refused(addresses: list[str]) -> None:
    sockets = Sockets()
    async with Receiver().serving() as receiver:
        guard = AddressGuard(make_socket=sockets)
        answer = await sent(f"http://example.com:{receiver.port}/", guard=guard, resolver=Names(addresses))
    assert (answer, sockets.n_made, receiver.n_connections) == (CallbackResponse(None, BLOCKED), 0, 0)


async def test_a_name_that_is_public_at_first_and_then_loopback_is_refused() -> None:
    sockets, names = Sockets(is_dead=True), Names(["93.184.215.14"], ["127.0.0.1"])
    async with Receiver().serving() as receiver, posting(AddressGuard(make_socket=sockets), resolver=names) as post:
        first = await post(f"http://example.com:{receiver.port}/")
        assert first.error == "no connection to the receiver: Connection refused"
        n_made = sockets.n_made
        assert n_made > 0
        assert (await post(f"http://example.com:{receiver.port}/")).error == BLOCKED
    assert (sockets.n_made, names.n_asked, receiver.n_connections) == (n_made, 2, 0)


async def test_only_allowed_addresses_of_a_name_are_connected_to() -> None:
    sockets = Sockets()
    async with Receiver().serving() as receiver:
        names = Names(["10.0.0.1", "::1", "169.254.169.254", "127.0.0.1"])
        answer = await sent(f"http://example.com:{receiver.port}/", guard=loopback(sockets), resolver=names)
    assert (answer, sockets.n_made) == (CallbackResponse(200, None), 1)


async def test_a_name_without_addresses_is_a_failed_attempt(outbox: MemoryOutbox) -> None:
    outbox.put("http://example.com/")
    async with sending(outbox, WebhookTransport(AddressGuard(), resolver=Names([]))):
        attempt = await outbox.attempt()
    assert attempt.next_at is not None
    assert (attempt.error or "").startswith("the attempt failed in an unexpected way")


def test_anycast_addresses_of_the_network_itself_are_not_allowed() -> None:
    hosts = ("192.31.196.1", "192.52.193.1", "192.175.48.6", "2620:4f:8000::6", "64:ff9b::192.175.48.6")
    assert not any(map(AddressGuard().allows, hosts))
    assert all(map(AddressGuard().allows, ("192.31.197.1", "192.52.192.1", "192.175.49.1", "2620:4f:8001::1")))


def test_public_addresses_are_allowed() -> None:
    hosts = ("93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1")
    assert all(map(AddressGuard().allows, hosts))


def test_allowed_networks_may_be_of_both_families() -> None:
    guard = AddressGuard(["10.1.0.0/16", "fd00:1::/32"])
    assert list(map(guard.allows, ("10.1.2.3", "fd00:1::5", "10.2.0.1", "fd00:2::5"))) == [True, True, False, False]


@pytest.mark.parametrize("network", ["10.0.0.1/8", "10.0.0.0/33", "cluster.local", ""])
def test_a_network_that_cannot_be_read_is_refused(network: str) -> None:
    with pytest.raises(ConfigError, match="allowed network"):
        AddressGuard([network])


ANY_IPV4 = st.ip_addresses(v=4)
NOT_GLOBAL = ANY_IPV4.filter(lambda address: not address.is_global)


@given(NOT_GLOBAL)
def test_no_address_that_is_not_global_is_allowed_however_it_is_embedded(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    forms = [
        address,
        ipaddress.IPv6Address(number),  # compatible
        ipaddress.IPv6Address(0xFFFF << 32 | number),  # mapped
        ipaddress.IPv6Address(0xFFFF << 48 | number),  # translated
        ipaddress.IPv6Address(0x0064_FF9B << 96 | number),  # NAT64
        ipaddress.IPv6Address(0x0064_FF9B_0001 << 80 | number),  # NAT64 of one network
        ipaddress.IPv6Address(0x2002 << 112 | number << 80 | 1),  # 6to4
        ipaddress.IPv6Address(0x2001_0000 << 96 | number << 64 | 1),  # Teredo's server
        ipaddress.IPv6Address(0x2001_0000 << 96 | ~number & 0xFFFFFFFF),  # Teredo's client
    ]
    assert not [form for form in forms if AddressGuard().allows(str(form))]


@given(st.ip_addresses())
def test_an_address_that_the_guard_allows_is_global_for_python_too(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert address.is_global or not AddressGuard().allows(str(address))


@given(st.text())
def test_text_that_is_no_address_is_not_allowed(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        assert not AddressGuard(["0.0.0.0/0", "::/0"]).allows(text)


def test_sockets_of_other_families_are_not_made() -> None:
    with pytest.raises(OSError, match="no public address"):
        AddressGuard(["0.0.0.0/0"]).open_socket((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80)))


# --- the worker ------------------------------------------------------------------------------------------------------


async def test_a_slow_receiver_holds_up_no_other(outbox: MemoryOutbox) -> None:
    async with Receiver(never).serving() as slow, Receiver().serving() as quick:
        for n in range(300):  # more than the first pages hold
            outbox.put(slow.url, f"job-slow-{n}", at=0)
        outbox.put(quick.url, "job-quick", at=1)
        async with sending(outbox, max_per_receiver=4):
            await outbox.attempt()
            for _ in range(4):
                await asyncio.wait_for(slow.came.acquire(), TIMEOUT_S)
    assert [job_id for job_id, _ in outbox.attempts] == ["job-quick"]
    assert len(slow.bodies) == 4


async def test_the_number_in_flight_is_limited_and_all_are_sent(outbox: MemoryOutbox) -> None:
    n_now = most = 0

    async def counted(_request: web.BaseRequest) -> web.StreamResponse:
        nonlocal n_now, most
        n_now += 1
        most = max(most, n_now)
        await asyncio.sleep(0)
        n_now -= 1
        return web.Response()

    async with Receiver(counted).serving() as receiver:
        for n in range(100):
            outbox.put(receiver.url, f"job-{n}")
        async with sending(outbox, max_in_flight=5, max_per_receiver=50):
            await outbox.attempt(100)
    assert len(receiver.bodies) == len({job_id for job_id, _ in outbox.attempts}) == 100
    assert most <= 5


async def test_a_callback_that_ends_while_the_outbox_answers_is_not_sent_again(outbox: MemoryOutbox) -> None:
    may_answer = asyncio.Event()

    async def held(_request: web.BaseRequest) -> web.StreamResponse:
        await may_answer.wait()
        return web.Response()

    class SlowOutbox(MemoryOutbox):
        n_asked = 0

        async def due(self, now: float, limit: int) -> list[Delivery]:
            page = await super().due(now, limit)
            self.n_asked += 1
            if self.n_asked == 2:  # the page holds the callback that is under way, and is late
                may_answer.set()
                await self.attempt()
                for _ in range(10):
                    await asyncio.sleep(0)
            await self._wake()
            return page

    outbox = SlowOutbox()
    async with Receiver(held).serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox) as sender:
            await asyncio.wait_for(receiver.came.acquire(), TIMEOUT_S)
            sender.wake()
            await outbox.until(lambda: outbox.n_asked >= 3)
    assert (len(receiver.bodies), len(outbox.attempts)) == (1, 1)


async def test_the_second_end_of_a_job_is_sent_while_the_first_is_still_being_sent(outbox: MemoryOutbox) -> None:
    async with Receiver(never, 200).serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox) as sender:
            await asyncio.wait_for(receiver.came.acquire(), TIMEOUT_S)
            first, at = outbox.rows["job-1"]
            outbox.rows["job-1"] = replace(first, completed_at="now", webhook_id="job-1-again"), at
            sender.wake()
            await outbox.attempt()
    assert [headers["webhook-id"] for headers in receiver.headers] == ["job-1", "job-1-again"]


async def test_an_unexpected_error_of_one_callback_does_not_stop_others(
    outbox: MemoryOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(WebhookTransport):
        async def post(self, url: str, payload: bytes, headers: dict[str, str]) -> CallbackResponse:
            if headers["webhook-id"] == "job-bad":
                raise ZeroDivisionError(url)
            return await super().post(url, payload, headers)

    async with Receiver().serving() as receiver:
        outbox.put(receiver.url, "job-bad")
        outbox.put(receiver.url, "job-good")
        async with sending(outbox, Faulty(loopback(), limit_s=TIMEOUT_S)):
            await outbox.attempt(2)
    attempts = dict(outbox.attempts)
    assert attempts["job-good"].error is None
    assert attempts["job-bad"].error == "the attempt failed in an unexpected way (ZeroDivisionError)"
    assert attempts["job-bad"].next_at is not None
    assert "job job-bad: callback failed at attempt 1" in caplog.text


async def test_while_the_outbox_takes_no_record_the_post_is_not_repeated(outbox: MemoryOutbox) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        sender.wake()

    outbox.faults = ["record", "record"]
    async with Receiver().serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox, sleep=sleep) as sender:
            await outbox.attempt()
    assert (len(receiver.bodies), len(slept)) == (1, 2)


async def test_an_outbox_that_fails_is_asked_again(outbox: MemoryOutbox, caplog: pytest.LogCaptureFixture) -> None:
    outbox.faults = ["due"]
    async with Receiver().serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox) as sender:
            await outbox.until(lambda: not outbox.faults)
            await asyncio.sleep(0)
            sender.wake()
            assert (await outbox.attempt()).status_code == 200
    assert "the outbox failed: the disk is full" in caplog.text


async def test_closing_lets_attempts_end_that_do_so_in_time(outbox: MemoryOutbox) -> None:
    may_answer = asyncio.Event()

    async def held(_request: web.BaseRequest) -> web.StreamResponse:
        await may_answer.wait()
        return web.Response()

    async with Receiver(held).serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox) as sender:
            await asyncio.wait_for(receiver.came.acquire(), TIMEOUT_S)
            closing = asyncio.create_task(sender.close(TIMEOUT_S))
            await asyncio.sleep(0)
            outbox.put(receiver.url, "job-late")
            may_answer.set()
            await closing
    assert [job_id for job_id, _ in outbox.attempts] == ["job-1"]
    assert list(outbox.rows) == ["job-late"]


async def test_an_attempt_canceled_by_closing_stays_due(outbox: MemoryOutbox) -> None:
    async with Receiver(never, 200).serving() as receiver:
        outbox.put(receiver.url)
        async with sending(outbox) as sender:
            await asyncio.wait_for(receiver.came.acquire(), TIMEOUT_S)
            await sender.close(grace_s=0.01)
        assert (outbox.attempts, list(outbox.rows)) == ([], ["job-1"])
        async with sending(outbox):  # the next process
            assert (await outbox.attempt()).status_code == 200
    assert receiver.headers[0]["webhook-id"] == receiver.headers[1]["webhook-id"]


async def test_a_sender_from_settings_sends_signed_to_allowed_networks(outbox: MemoryOutbox) -> None:
    async with Receiver().serving() as receiver:
        outbox.put(receiver.url)
        outbox.put("http://10.0.0.1/", "job-2")
        sender = make_sender(outbox, secrets=[SECRET], allowed_networks=["127.0.0.0/8"], delays_s=[])
        running = asyncio.create_task(sender.run())
        await outbox.attempt(2)
        await sender.close()
        await running
    assert {job_id: attempt.status_code for job_id, attempt in outbox.attempts} == {"job-1": 200, "job-2": None}
    Webhook(SECRET).verify(receiver.bodies[0], receiver.headers[0])
