"""A server with 1,024 file descriptors and 5,000 connections that ask nothing; then slow senders and aborted uploads.

Limits: /livez and /readyz within 250 ms, also while the connections are opened; a log below 1 MB; after everything no
upload, no connection and no process is left, and eight repetitions take less than half the memory of their bodies.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.benchmarks.harness import report
from tests.polling import until
from tests.server.http_client import ask
from tests.server.live import LiveServer, live_server
from tests.server.raw_http import head, wire

MAX_FILES, N_SILENT = 1024, 5000
# On loopback connections are opened faster than any server accepts; the system then drops every further one for 1 s.
N_AT_ONCE, BURST_S, HOLD_S = 100, 0.02, 3.0
N_SLOW, N_ABORTED = 15, 240
N_REPETITIONS, STEP_BYTES = 8, 1000
MAX_GROWN_MB = N_REPETITIONS * sum(range(N_ABORTED)) * STEP_BYTES / 2**20 / 2
PATHS = ("/livez", "/readyz")


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="br") as directory:
        data_dir = Path(directory) / "data"
        with live_server(data_dir, max_files=str(MAX_FILES), BATCHRAY_UPLOAD_IDLE_S="5") as server:
            process = psutil.Process(server.pid)
            idle = [asked_s(server.url, path) for path in PATHS * 30]
            n_open, probes = hold_silent(server.url)
            n_files, n_bytes = process.num_fds(), list[int]()
            for _ in range(1 + N_REPETITIONS):  # the first time grows the allocator's own memory
                send_badly(server)
                until(lambda: is_clean(server), 60)
                n_bytes.append(process.memory_info().rss)
            grown_mb = (n_bytes[-1] - n_bytes[0]) / 2**20
            slowest_ms, log_mb = max(probes) * 1000, len(server.log) / 2**20
    report(
        [
            f"{N_SILENT} silent connections, {MAX_FILES} descriptors: {n_open} open, then {n_files} files",
            f"{len(probes)} probes: slowest {slowest_ms:.0f} ms (limit 250 ms), before {max(idle) * 1000:.0f} ms",
            f"log {log_mb:.3f} MB (limit 1 MB)",
            f"{N_SLOW} slow senders, {N_ABORTED} aborted uploads, {N_REPETITIONS} times more: {grown_mb:+.1f} MB"
            f" (limit +{MAX_GROWN_MB:.0f} MB)",
        ],
        is_held=slowest_ms <= 250 and log_mb < 1 and grown_mb <= MAX_GROWN_MB and 0 < n_open < MAX_FILES,
    )


def hold_silent(url: str) -> tuple[int, list[float]]:
    """Open silent connections in a process of their own, and ask for the server's health meanwhile.

    Return how many of the connections are open at the end, and how long each question took, in seconds.
    """
    times = list[float]()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.connections", url], stdout=subprocess.PIPE, text=True
    ) as silent:
        while silent.poll() is None:
            times.append(asked_s(url, PATHS[len(times) % 2]))
            time.sleep(0.02)
        assert silent.stdout is not None
        return int(silent.stdout.read()), times


def asked_s(url: str, path: str) -> float:
    """Return how long a question on a new connection takes, in seconds."""
    started = time.monotonic()
    ask(url, path)
    return time.monotonic() - started


def be_silent(url: str) -> None:
    """Open connections and send nothing; print how many of them are open after a while."""
    with ExitStack() as stack:
        silent = list[socket.socket]()
        while len(silent) < N_SILENT:
            burst = [stack.enter_context(socket.create_connection(address_of(url))) for _ in range(N_AT_ONCE)]
            silent += burst
            time.sleep(BURST_S)
        time.sleep(HOLD_S)
        poll = select.poll()
        for each in silent:
            poll.register(each, select.POLLIN)
        print(N_SILENT - len(poll.poll(0)))


def address_of(url: str) -> tuple[str, int]:
    """Return the host and port of a server."""
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def send_badly(server: LiveServer) -> None:
    """Send bodies that do not end: some slowly, the others until their sender disconnects."""
    with ExitStack() as stack:
        slow = [stack.enter_context(wire(server)) for _ in range(N_SLOW)]
        for sender in slow:
            sender.send(head(Content_Length=10_000))
        for number in range(N_ABORTED):
            start = head(Content_Length=10**6) if number % 2 else head(Transfer_Encoding="chunked") + b"fffff\r\n"
            with wire(server) as aborted:
                aborted.send(start, b" " * (number * STEP_BYTES))
            if number % 10 == 0:
                for sender in slow:
                    sender.send(b" ")
        for sender in slow:
            sender.socket.shutdown(socket.SHUT_RD)


def is_clean(server: LiveServer) -> bool:
    """Whether nothing is left of any upload, and no other connection is open."""
    process = psutil.Process(server.pid)
    n_clients = sum(each.status == "ESTABLISHED" for each in process.net_connections("tcp"))
    return not process.children() and not [*(server.data_dir / "uploads").iterdir()] and n_clients == 0


if __name__ == "__main__":
    be_silent(sys.argv[1]) if len(sys.argv) > 1 else main()
