"""Uploads of 256 MB, of a batch and of a file, during a running job: how long its outcomes wait for their commit.

The job's agent answers with the time, and a process that reads the database notes when it sees each answer.
Limit: 100 ms for 99 of 100 outcomes while a batch is sent, checked and stored.
Beside a file it is shown and not limited yet: one commit waited for 197 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from batchray.store.store import DATABASE
from tests.benchmarks.harness import report, when_input_ends
from tests.benchmarks.intake import UPLOADED_AGENT, post, write_body
from tests.server.http_client import BATCHES, ask
from tests.server.live import LiveServer, live_server

N_REQUESTS, WINDOW = 100_000, 20
ALONE_S = 5.0
AGENTS = f"""
agents:
  - {{id: clock, run: "tests.benchmarks.uploads:say_when"}}
{UPLOADED_AGENT}"""
_BOUNDARY = "-x7"
_POLL_S = 0.002
_LONGEST_S = 30.0


async def say_when(_: dict[str, object]) -> str:
    """Answer with the time at which this returns, in seconds of the clock that all processes share."""
    await asyncio.sleep(0.05)
    return repr(time.monotonic())


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="br") as name:
        body, agents = Path(name) / "body.json", Path(name) / "agents.yaml"
        write_body(body, "messages")
        agents.write_text(AGENTS)
        with live_server(Path(name) / "data", "--max-in-flight", str(WINDOW), agents=agents) as server:
            job = {"requests": [{"agent_id": "clock", "input": str(index)} for index in range(N_REQUESTS)]}
            ask(server.url, BATCHES, job)
            with _watched(server) as alone:
                time.sleep(ALONE_S)
            with _watched(server) as beside_batch:
                batch_s, status, _ = post(server, body)
            assert status == 200, status
            _make_form(body)
            with _watched(server) as beside_file:
                file_s, status, _ = post(server, body, "/v1/files", f"multipart/form-data; boundary={_BOUNDARY}")
            assert status == 200, status
    p99_ms = _quantile(beside_batch, 0.99)
    report(
        [
            f"alone             {_line(alone)}",
            f"beside a batch    {_line(beside_batch)}; accepted after {batch_s:.2f} s",
            f"beside a file     {_line(beside_file)}; accepted after {file_s:.2f} s",
            f"99 of 100 outcomes beside a batch committed within {p99_ms:.0f} ms of their arrival (limit 100)",
        ],
        is_held=len(beside_batch) >= 100 and p99_ms <= 100,
    )


def _make_form(file: Path) -> None:
    """Write a form with a file of 250 MB."""
    head = 'Content-Disposition: form-data; name="{}"\r\n\r\n'
    with file.open("w") as form:
        form.write(f"--{_BOUNDARY}\r\n{head.format('purpose')}batch\r\n--{_BOUNDARY}\r\n")
        form.write(head.format('file"; filename="in.jsonl'))
        for _ in range(250):
            form.write('{"custom_id": "a"}\n'.ljust(1024) * 1024)
        form.write(f"\r\n--{_BOUNDARY}--\r\n")


def _line(waits_ms: Sequence[float]) -> str:
    p50, p99 = (_quantile(waits_ms, q) for q in (0.5, 0.99))
    return f"{len(waits_ms):6} outcomes: p50 {p50:.0f} ms, p99 {p99:.0f} ms, max {max(waits_ms):.0f} ms"


def _quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))]


@contextlib.contextmanager
def _watched(server: LiveServer) -> Iterator[list[float]]:
    """Yield a list that has, after this block, the milliseconds that each outcome waited inside it."""
    command = [sys.executable, "-m", "tests.benchmarks.uploads", "watch", str(server.data_dir / DATABASE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        waits_ms: list[float] = []
        yield waits_ms
        waits_ms += orjson.loads(watcher.communicate()[0])


def _watch(database: Path) -> None:
    """Read the outcomes of the first job as they are committed until standard input ends; print how long they waited.

    Those that arrived before that count too, however long their commit takes afterwards.
    """
    is_over, waits_ms = threading.Event(), list[float]()
    threading.Thread(target=when_input_ends, args=(is_over.set,), daemon=True).start()
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    query = "SELECT seq, messages FROM outcomes WHERE job = 1 AND seq > ? ORDER BY seq"
    last = connection.execute("SELECT coalesce(max(seq), 0) FROM outcomes WHERE job = 1").fetchone()[0]
    print("watching", flush=True)
    arrived, ended_at = 0.0, math.inf
    while arrived < ended_at and time.monotonic() < ended_at + _LONGEST_S:
        time.sleep(_POLL_S)
        if is_over.is_set():
            ended_at = min(ended_at, time.monotonic())
        rows = connection.execute(query, (last,)).fetchall()
        now = time.monotonic()
        for last, messages in rows:  # noqa: B007
            [answer] = re.findall(rb'"(\d+\.\d+)"', messages)
            arrived = float(answer)
            waits_ms.append((now - arrived) * 1e3)
    sys.stdout.buffer.write(orjson.dumps(waits_ms))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["watch", database]:
            _watch(Path(database))
        case _:
            main()
