"""The way to a provider: addresses, queries, headers, proxies, certificate authorities."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp.web
import pytest

from batchray.errors import ConfigError, ModelAPIError
from batchray.models import make_client
from batchray.models.connection import Connection, merged_headers
from tests.builders.model_calls import KEY, PATIENT, call, failure

CERTIFICATE = Path(__file__).parents[1] / "data" / "loopback.pem"
CHAT = b'data: {"choices": [{"index": 0, "delta": {"content": "Sunny."}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


@dataclass
class Recorder:
    """A server that keeps the target and the headers of each call, and answers all with one chat completion."""

    status: int = 200
    url: str = ""
    targets: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@asynccontextmanager
async def serving(
    handle: Callable[[aiohttp.web.BaseRequest], Awaitable[aiohttp.web.StreamResponse]],
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Serve on loopback, and yield the address."""
    runner = aiohttp.web.ServerRunner(aiohttp.web.Server(handle))
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def recorder(status: int = 200) -> AsyncIterator[Recorder]:
    seen = Recorder(status)

    async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        await request.read()
        seen.targets.append(request.raw_path)
        seen.headers.append({name.lower(): value for name, value in request.headers.items()})
        return aiohttp.web.Response(status=seen.status, body=CHAT, content_type="text/event-stream")

    async with serving(handle) as seen.url:
        yield seen


async def ask(base_url: str, protocol: str = "openai", key: str | None = KEY, **options: Any) -> str:
    client = make_client("local", protocol, base_url, key, timeouts=PATIENT, **options)
    try:
        return (await client.ask(call())).text
    finally:
        await client.close()


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "path", "asked"),
    [
        ("http://h/v1", "/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/v1/", "/chat/completions", "http://h/v1/chat/completions"),
        ("http://h", "/chat/completions", "http://h/chat/completions"),
        ("http://h/v1/chat/completions", "/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions/", "/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions", "/responses", "http://h/v1/responses"),
        ("http://h/v1/responses", "/responses", "http://h/v1/responses"),
        ("http://h", "/v1/messages", "http://h/v1/messages"),
        ("http://h/v1", "/v1/messages", "http://h/v1/messages"),
        ("http://h/api/v1/messages", "/v1/messages", "http://h/api/v1/messages"),
        ("http://h/v1/messages", "/v1/models/m", "http://h/v1/models/m"),
        (
            "http://h/d?api-version=2024-10-21",
            "/chat/completions",
            "http://h/d/chat/completions?api-version=2024-10-21",
        ),
        ("http://h/d/?a=1&a=2#part", "/responses", "http://h/d/responses?a=1&a=2"),
        ("http://h/v1/messages?beta=true", "/v1/messages", "http://h/v1/messages?beta=true"),
        ("http://[::1]:8000/v1", "/responses", "http://[::1]:8000/v1/responses"),
    ],
)
def test_a_call_goes_to_its_path_under_the_address(base_url: str, path: str, asked: str) -> None:
    assert str(Connection("p", base_url, {}).url(path)) == asked


def test_further_parameters_replace_those_of_the_address() -> None:
    way = Connection("p", "http://h/d?api-version=1&x=%20", {}, query={"api-version": "2", "tenant": "a b"})
    assert str(way.url("/chat/completions")) == "http://h/d/chat/completions?x=+&api-version=2&tenant=a+b"


async def test_a_call_of_azure_has_its_version_and_its_key() -> None:
    async with recorder() as azure:
        address = f"{azure.url}/openai/deployments/d?api-version=2024-10-21"
        assert await ask(address, auth="api-key") == "Sunny."
    assert azure.targets == ["/openai/deployments/d/chat/completions?api-version=2024-10-21"]
    assert azure.headers[0]["api-key"] == KEY
    assert "authorization" not in azure.headers[0]


@pytest.mark.parametrize(
    ("refusal", "n_calls", "left"),
    [
        ("{'loc': ['body', 'stream_options'], 'msg': 'Extra inputs are not permitted'}", 2, {"stream": True}),
        ("Unsupported value: 'stream' does not support true with this model. Supported values are: false.", 2, {}),
        ("Your organization must be verified to stream this model.", 2, {}),
        ("streaming is not supported; send your messages elsewhere", 2, {}),
        ("the upstream is not supported", 1, {"stream": True, "stream_options": {"include_usage": True}}),
    ],
)
async def test_a_server_that_refuses_a_stream_or_its_options_is_asked_without(
    refusal: str, n_calls: int, left: dict[str, Any]
) -> None:
    bodies: list[dict[str, Any]] = []

    async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        bodies.append(await request.json())
        if len(bodies) == 1:
            return aiohttp.web.json_response({"error": {"message": refusal}}, status=400)
        choice = {"index": 0, "message": {"content": "Sunny."}, "finish_reason": "stop"}
        return aiohttp.web.json_response({"choices": [choice]})

    async with serving(handle) as url:
        if n_calls == 1:
            await failure(ask(url), ModelAPIError)
        else:
            assert await ask(url) == "Sunny."
    assert len(bodies) == n_calls
    assert {name: bodies[-1][name] for name in ("stream", "stream_options") if name in bodies[-1]} == left


# --- headers and secrets ---------------------------------------------------------------------------------------------


def test_a_later_header_wins_whatever_its_case() -> None:
    assert merged_headers({"Accept": "a", "X-Own": "b"}, {"ACCEPT": "c"}) == {"ACCEPT": "c", "X-Own": "b"}


async def test_given_headers_replace_those_of_the_protocol() -> None:
    async with recorder() as server:
        await ask(server.url, headers={"authorization": "Basic dTpw", "user-agent": "mine", "X-Title": "a title"})
    sent = server.headers[0]
    assert (sent["authorization"], sent["user-agent"], sent["x-title"]) == ("Basic dTpw", "mine", "a title")


@pytest.mark.parametrize(
    ("auth", "header", "value"), [("bearer", "authorization", f"Bearer {KEY}"), ("x-api-key", "x-api-key", KEY)]
)
async def test_an_option_chooses_the_header_of_the_key(auth: str, header: str, value: str) -> None:
    async with recorder(status=404) as server:
        for protocol in ("openai", "anthropic"):
            await failure(ask(server.url, protocol, auth=auth), ModelAPIError)
    keyed = [{name: sent[name] for name in ("authorization", "x-api-key") if name in sent} for sent in server.headers]
    assert keyed == [{header: value}] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Bearer hunter2-hunter2-"}},
        {"headers": {"X-Api-Key": "hunter2-hunter2-"}},
        {"query": {"key": "hunter2-hunter2-"}},
        {"secrets": ["hunter2-hunter2-"]},
    ],
)
def test_secrets_are_masked_in_what_a_provider_says(options: dict[str, Any]) -> None:
    way = Connection("p", "http://h", **{"headers": {}, **options})
    assert way.masked("the key hunter2-hunter2- and hunter*** are wrong") == "the key *** and *** are wrong"
    assert "hunter" not in way.address


def test_a_short_secret_is_masked_only_as_a_whole_word() -> None:
    assert Connection("p", "http://h", {"api-key": "k"}).masked("k is no key; ask k.") == "*** is no key; ask ***."


# --- proxies ---------------------------------------------------------------------------------------------------------


async def test_calls_go_through_a_proxy_with_its_password() -> None:
    async with recorder() as proxy:
        assert await ask("http://model.test/v1", proxy=proxy.url.replace("//", "//me:pass@")) == "Sunny."
    assert proxy.targets == ["http://model.test/v1/chat/completions"]
    assert proxy.headers[0]["proxy-authorization"].startswith("Basic ")


async def test_a_proxy_that_refuses_is_named() -> None:
    async with recorder(status=407) as proxy:
        error = await failure(ask("https://model.test/v1", proxy=proxy.url), ModelAPIError)
    assert error.message == ("local: the proxy answers with status 407; check `proxy` or the variable HTTPS_PROXY")


async def test_an_encrypted_provider_is_reached_through_a_tunnel() -> None:
    tunnels: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        await request.read()
        return aiohttp.web.Response(body=CHAT, content_type="text/event-stream")

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnels.append((await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")[0])
        from_server, to_server = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(_copy(reader, to_server), _copy(from_server, writer))

    async with serving(handle, context) as url, await asyncio.start_server(tunnel, "127.0.0.1", 0) as proxy:
        address = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        provider = url.replace("127.0.0.1", "localhost")
        assert await ask(f"{provider}/v1", proxy=address, ca_pem=CERTIFICATE.read_text()) == "Sunny."
    assert tunnels == [f"CONNECT {provider.removeprefix('https://')} HTTP/1.1"]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_no_password_of_a_netrc_file_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2-hunter2-")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with recorder() as server:
        await ask(server.url, key=None)
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize("base_url", ["h/v1", "ftp://h", "http://", "http://me:pass@h"])
def test_an_address_that_http_cannot_reach_is_refused(base_url: str) -> None:
    with pytest.raises(ConfigError, match="provider 'p': "):
        Connection("p", base_url, {})
