"""Readers of a streamed response that stall or leave, over real connections."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from batchray.server.errors import errors_as_json
from batchray.server.shared_pages import SharedPage
from batchray.server.stalled_readers import StalledReaders
from batchray.server.stream import JsonLines, StreamCutError, StreamedResponse
from batchray.views.result_pages import ResultPosition
from tests.server.streaming import CutError, opened

Handle = Callable[[StreamedResponse], AsyncIterator[None]]
LARGE = 20_000_000
RESET = struct.pack("ii", 1, 0)


class Pages:
    """Makes the same page each time, and keeps only weak references to those that it has made."""

    def __init__(self, n_results: int = 1) -> None:
        self.n_results, self.made = n_results, list[weakref.ref[SharedPage]]()

    async def read(self) -> SharedPage:
        page = SharedPage(b"x" * LARGE + b"\n", self.n_results, ResultPosition(0, 1))
        self.made.append(weakref.ref(page))
        return page

    @property
    def n_alive(self) -> int:
        return sum(page() is not None for page in self.made)


@asynccontextmanager
async def serving(pages: Pages, idle_s: float | None = None, error: Exception | None = None) -> AsyncIterator[str]:
    """Serve one page as a stream of JSON Lines; `error` is raised after it."""

    async def handle(request: web.Request) -> web.StreamResponse:
        lines = JsonLines(request)
        await lines.write_page(pages.read)
        if error is not None:
            raise error
        return await lines.end()

    app = web.Application(middlewares=[errors_as_json])
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    assert runner.server is not None
    watch = asyncio.create_task(StalledReaders(idle_s).run(runner.server)) if idle_s is not None else None
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        if watch is not None:
            watch.cancel()
        await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_page_of_one_result_is_released_while_its_reader_stalls_and_then_sent_whole() -> None:
    pages = Pages()
    async with serving(pages) as url, opened(url, "/") as stream:
        await until(lambda: len(pages.made) == 1 and pages.n_alive == 0)
        assert [len(line) async for line in stream.lines()] == [LARGE]
        assert len(pages.made) == 2


async def test_a_page_of_several_results_is_kept_for_its_reader() -> None:
    pages = Pages(n_results=2)
    async with serving(pages) as url, opened(url, "/") as stream:
        assert [len(line) async for line in stream.lines()] == [LARGE]
        assert len(pages.made) == 1


@pytest.mark.parametrize("resets", [False, True])
async def test_a_reader_that_leaves_keeps_nothing_and_is_no_error(
    resets: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pages = Pages(n_results=2)
    gc.collect()
    gc.disable()  # what is left then is a reference cycle
    try:
        async with serving(pages) as url:
            for n_gone in range(1, 4):
                with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as reader:
                    reader.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    await until(lambda n_gone=n_gone: len(pages.made) == n_gone)  # type: ignore[misc]
                    await asyncio.to_thread(reader.recv, 1)
                    if resets:
                        reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                await until(lambda: pages.n_alive == 0)
    finally:
        gc.enable()
    assert not caplog.records


async def test_a_reader_that_takes_nothing_is_disconnected() -> None:
    pages = Pages(n_results=2)
    async with serving(pages, idle_s=0.1) as url, opened(url, "/") as stream:
        await until(lambda: len(pages.made) == 1 and pages.n_alive == 0)
        with pytest.raises(CutError):
            async for _ in stream.lines():
                pass


@pytest.mark.parametrize("error", [StreamCutError("stopping"), ValueError("a bug")])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_stream_that_fails_looks_cut(error: Exception, version: str) -> None:
    async with serving(Pages(), error=error) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(f"GET / HTTP/{version}\r\nHost: x\r\n\r\n".encode())
        ending = await _ending(reader)
        assert ending == "reset" if version == "1.0" else ending == "no last chunk"
        writer.close()


async def _ending(reader: asyncio.StreamReader) -> str:
    last = b""
    try:
        while part := await reader.read(2**20):
            last = (last + part)[-10:]
    except ConnectionResetError:
        return "reset"
    return "last chunk" if last.endswith(b"\r\n0\r\n\r\n") else "no last chunk"
