"""Memory of a server with 100 results of 2 MB: 50 readers, of whom half stall; and 200 who stall and leave.

Limits: +150 MB beyond the idle server's meanwhile, +50 MB a minute after.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.harness import anonymous_mb, report
from tests.server.http_client import BATCHES, create, ended
from tests.server.live import LiveServer, live_server
from tests.server.streaming import opened

N_RESULTS, N_BYTES = 100, 2_000_000
N_READERS, N_STALLED, N_LEAVING = 50, 25, 200
AGENTS = {"agents": [{"id": "large", "run": "tests.benchmarks.readers:large"}]}


def large(text: str) -> str:
    """The agent: an answer of 2 MB."""
    return "x" * N_BYTES


class _Watch(threading.Thread):
    """Watches the memory of a server."""

    def __init__(self, server: LiveServer) -> None:
        super().__init__(daemon=True)
        self._server, self._is_over = server, threading.Event()
        self.idle_mb = self.peak_mb = anonymous_mb(server.pid)

    @property
    def grown_mb(self) -> float:
        """How much larger than the idle server the server is now."""
        return anonymous_mb(self._server.pid) - self.idle_mb

    def run(self) -> None:
        while not self._is_over.wait(0.05):
            self.peak_mb = max(self.peak_mb, anonymous_mb(self._server.pid))

    def stop(self) -> float:
        """Return how much larger than the idle server the server was at most."""
        self._is_over.set()
        self.join()
        return self.peak_mb - self.idle_mb


@contextlib.contextmanager
def _server(job_dir: Path) -> Iterator[LiveServer]:
    agents = job_dir / "agents.json"
    agents.write_text(json.dumps(AGENTS))
    with live_server(job_dir / "data", agents=agents) as server:
        yield server


async def _read(server: LiveServer, path: str, n_readers: int, n_stalled: int) -> int:
    """Read a stream with some readers, beside others that read nothing; return the least that a reader got."""
    are_done = asyncio.Event()

    async def read() -> int:
        async with opened(server.url, path) as stream:
            return sum([len(chunk) async for chunk in stream.chunks()])

    async def stall() -> None:
        async with opened(server.url, path):
            await are_done.wait()

    stalled = [asyncio.create_task(stall()) for _ in range(n_stalled)]
    n_bytes = await asyncio.gather(*(read() for _ in range(n_readers)))
    await asyncio.sleep(1 if n_readers else 10)
    are_done.set()
    await asyncio.gather(*stalled)
    return min(n_bytes, default=0)


def main() -> None:
    """Measure and print."""
    lines, is_held = [], True
    with tempfile.TemporaryDirectory(prefix="br") as directory:
        with _server(Path(directory)) as server:
            job_id = create(server, [{"agent_id": "large", "input": "x"}] * N_RESULTS)["id"]
            ended(server, job_id, 300)
            server.stop()
        for kind, loads in itertools.product(("results", "events"), ("many", "leaving")):
            n_readers, n_stalled = (N_READERS - N_STALLED, N_STALLED) if loads == "many" else (0, N_LEAVING)
            with _server(Path(directory)) as server:  # a fresh one: memory that an earlier load left would hide growth
                path = f"{BATCHES}/{job_id}/{kind}"
                asyncio.run(_read(server, f"{BATCHES}/{job_id}/items", 0, 1))  # imports the code
                watch = _Watch(server)
                watch.start()
                n_bytes = asyncio.run(_read(server, path, n_readers, n_stalled))
                peak_mb = watch.stop()
                time.sleep(60)
                left_mb = watch.grown_mb
                assert not n_readers or n_bytes > (N_RESULTS * N_BYTES if kind == "results" else 10_000)
            is_held = is_held and peak_mb <= 150 and left_mb <= 50
            readers = f"{n_readers} readers and {n_stalled} that stall"
            lines.append(f"/{kind}, {readers}: +{peak_mb:.0f} MB meanwhile, +{left_mb:.0f} MB a minute after")
    report([*lines, "limits: +150 MB meanwhile, +50 MB a minute after"], is_held=is_held)


if __name__ == "__main__":
    main()
