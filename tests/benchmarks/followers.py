"""200 followers of one job of 4,000 items, while others ask for /livez and /readyz.

Limits: 250 ms at the 99th percentile for both; every follower gets all results.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

from tests.benchmarks.harness import report, when_input_ends
from tests.server.http_client import BATCHES, call, create
from tests.server.live import LiveServer, live_server
from tests.server.streaming import opened

N_FOLLOWERS, N_ITEMS, ITEM_S = 200, 4000, 0.3
PROBES = ("/livez", "/readyz")
AGENTS = {"agents": [{"id": "wait", "run": "tests.cluster.agents:wait"}]}


async def _follow(server: LiveServer, path: str, mark: bytes) -> list[int]:
    """Follow with all followers; return how many lines that begin with `mark` each got."""

    async def follow() -> int:
        async with opened(server.url, path) as stream:
            return sum([line.startswith(mark) async for line in stream.lines()])

    return await asyncio.gather(*(follow() for _ in range(N_FOLLOWERS)))


@contextlib.contextmanager
def _probed(server: LiveServer) -> Iterator[dict[str, float]]:
    """Ask for the probes meanwhile, in a process of its own; yields what will be their 99th percentiles, in ms."""
    command = [sys.executable, "-m", "tests.benchmarks.followers", server.url]
    percentiles: dict[str, float] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as prober:
        yield percentiles
        percentiles |= json.loads(prober.communicate()[0])


def _probe(url: str) -> None:
    """Ask every 50 ms until standard input ends, and print the 99th percentiles as JSON."""
    is_over, found = threading.Event(), dict[str, float]()
    threading.Thread(target=when_input_ends, args=(is_over.set,), daemon=True).start()

    def ask(path: str) -> None:
        times, connection = list[float](), HTTPConnection(url.removeprefix("http://"), timeout=60)
        with contextlib.closing(connection):
            while not is_over.wait(0.05):
                started = time.monotonic()
                connection.request("GET", path)
                connection.getresponse().read()
                times.append(time.monotonic() - started)
        found[path] = sorted(times)[int(len(times) * 0.99)] * 1e3

    threads = [threading.Thread(target=ask, args=(path,)) for path in PROBES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(found))


def main() -> None:
    """Measure and print."""
    lines, is_held = [], True
    with tempfile.TemporaryDirectory(prefix="br") as directory:
        agents = Path(directory) / "agents.json"
        agents.write_text(json.dumps(AGENTS))
        with live_server(Path(directory) / "data", "--max-in-flight", "200", agents=agents) as server:
            first = create(server, [{"agent_id": "wait", "input": "0"}])["id"]  # the first job imports code
            assert call(server, "GET", f"{BATCHES}/{first}/events").status == 200
            for kind, mark in (("results?follow=true", b'{"index":'), ("events", b"event: outcome")):
                job_id = create(server, [{"agent_id": "wait", "input": str(ITEM_S)}] * N_ITEMS)["id"]
                started = time.monotonic()
                with _probed(server) as percentiles:
                    got = asyncio.run(_follow(server, f"{BATCHES}/{job_id}/{kind}", mark))
                took_s = time.monotonic() - started
                times = ", ".join(f"{path} {ms:.0f} ms" for path, ms in percentiles.items())
                lines.append(f"/{kind}: {got.count(N_ITEMS)} of {N_FOLLOWERS} complete in {took_s:.1f} s; p99 {times}")
                is_held = is_held and set(got) == {N_ITEMS} and max(percentiles.values()) <= 250
    report([*lines, "limits: all complete, 250 ms"], is_held=is_held)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _probe(sys.argv[1])
    else:
        main()
