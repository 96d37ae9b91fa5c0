"""Nothing is kept of clients that leave, or that do not speak HTTP, until the garbage collector runs."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path

from aiohttp import StreamReader, web

from batchray.config import ServerSettings, load_agents
from batchray.jobs.runtime import Runtime
from batchray.server.app import serving
from batchray.server.connections import ClientConnection
from tests.polling import until
from tests.server.live import QUICKSTART
from tests.server.raw_http import head

TEXT = b" " * 50_000
SENT = {
    "an upload that its sender aborts": head(Content_Length=10**6) + TEXT,
    "a chunked upload that its sender aborts": head(Transfer_Encoding="chunked") + b"fffff\r\n" + TEXT,
    "a body that is refused": head(Content_Length=len(TEXT)) + TEXT,
    "a body of a single request that is refused": head("/v1/agents/clerk/messages", Content_Length=len(TEXT)) + TEXT,
    "a malformed chunk": head(Transfer_Encoding="chunked") + b"zz\r\n" + TEXT,
    "something that is not HTTP": TEXT,
}


def test_no_cycle_keeps_a_request_or_its_body(tmp_path: Path) -> None:
    settings = ServerSettings(data_dir=tmp_path, port=0, executor="local")

    async def main() -> list[object]:
        async with serving(settings, load_agents([QUICKSTART]), Runtime()) as server:
            gc.collect()
            gc.disable()
            try:
                await asyncio.to_thread(send_all, server.port)
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                return list(gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()

    kept = asyncio.run(main())
    assert not [each for each in kept if isinstance(each, (ClientConnection, web.Request, StreamReader))]
    assert not [each for each in kept if isinstance(each, (bytes, bytearray)) and len(each) > len(TEXT) / 2]


def send_all(port: int) -> None:
    """Send each form on a connection, leave, and wait until the server has noticed."""
    for name, sent in SENT.items():
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(sent)
            if "aborts" not in name:
                assert client.recv(100).startswith(b"HTTP/1.1 4"), name
    until(lambda: not [each for each in gc.get_objects() if isinstance(each, ClientConnection) and each.connected], 20)
