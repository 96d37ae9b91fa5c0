from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import pytest

from batchray.executors.ray.monitor import ClusterMonitor


async def lost(monitor: ClusterMonitor, max_unreachable_s: float = 0.2) -> str:
    async with asyncio.timeout(20):
        return await monitor.wait_until_lost(max_unreachable_s)


async def test_a_dead_process_is_noticed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    waiting = asyncio.create_task(lost(ClusterMonitor({"raylet": process}, {}, poll_s=0.01)))
    await asyncio.sleep(0)
    assert not waiting.done()
    process.kill()
    assert await waiting == "its raylet has died"


async def test_an_address_that_stops_answering_is_noticed() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    waiting = asyncio.create_task(lost(ClusterMonitor({}, {"GCS": (host, port)}, poll_s=0.01)))
    server.close()
    await server.wait_closed()
    assert await waiting == f"its GCS at {host}:{port} has not answered for 0.2 s"


async def test_an_address_that_answers_again_in_time_is_not_lost() -> None:
    reserved = (
        socket.socket()
    )  # bound and not listening: it refuses connections, and no other process can take its port
    reserved.bind(("127.0.0.1", 0))
    host, port = reserved.getsockname()
    waiting = asyncio.create_task(lost(ClusterMonitor({}, {"GCS": (host, port)}, poll_s=0.01), max_unreachable_s=10))
    connected = asyncio.Event()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        writer.close()

    async with await asyncio.start_server(take, sock=reserved):
        await asyncio.wait_for(connected.wait(), 20)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
