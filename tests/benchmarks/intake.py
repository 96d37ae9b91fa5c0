"""Upload of 256 MB with 760,000 requests to a live server: time, memory, and the latency of other requests.

Limits: accepted in no more time than `orjson.loads` and pydantic take for the same body; 150 MB of memory beyond the
idle server's, file pages aside; /livez within 250 ms.  For 8 bodies at once 512 MB, and a ninth is refused with 503.
The requests have `messages`, as those of Letta's clients do, or `input` alone: then pydantic is three times as fast.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import orjson

from batchray.schema import CreateBatch
from tests.benchmarks.harness import anonymous_mb, report, when_input_ends
from tests.server.live import LiveServer, live_server

N, N_BYTES = 760_000, 256 * 1024 * 1024
N_AT_ONCE, N_TURNS = 8, 3
# An agent that answers long after the benchmark, which does not measure running the items.
UPLOADED_AGENT = """
  - {id: agent-0b5b0c5e-6a39-4a52-8b71-5f2c1a3d9e70, model: offline/scripted, deadline_s: 7200,
     script: [{text: done, delay_s: 3600}]}
"""
AGENTS = f"agents:{UPLOADED_AGENT}"
_AGENT = b'{"agent_id":"agent-0b5b0c5e-6a39-4a52-8b71-5f2c1a3d9e70",'
SHAPES = {
    "messages": (_AGENT + b'"messages":[{"role":"user","content":"', b'"}]}'),
    "input": (_AGENT + b'"input":"', b'"}'),
}
"""The JSON before and after the text of a request."""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="br") as directory:
        body = Path(directory) / "body.json"
        lines, is_held = [], True
        for shape in SHAPES:
            write_body(body, shape)
            ratio, watch = _ratio(Path(directory) / shape, body)
            lines.append(f"{shape}: accepted / (orjson + pydantic) = {ratio}; {watch}")
            is_held = is_held and ratio.middle <= 1 and watch.grown_mb <= 150 and watch.slowest_ms <= 250
        with _server(Path(directory) / "many") as server, _watched(server) as watch_many:
            n_accepted, refused = _post_many(server, body)
    report(
        [
            *lines,
            f"{N_AT_ONCE} at once: {n_accepted} accepted; {watch_many}; the next one got {refused}",
            "limits: 1.00, +150 MB and 250 ms; +512 MB",
        ],
        is_held=is_held and watch_many.grown_mb <= 512 and (n_accepted, refused) == (N_AT_ONCE, (503, True)),
    )


class _Ratio(NamedTuple):
    """The seconds that a body and its baseline took, in turns."""

    accepted_s: Sequence[float]
    baseline_s: Sequence[float]

    @property
    def middle(self) -> float:
        return statistics.median(self.accepted_s) / statistics.median(self.baseline_s)

    def __str__(self) -> str:
        accepted, baseline = (" ".join(f"{each:.2f}" for each in seconds) for seconds in self)
        return f"{self.middle:.2f} ({accepted} s / {baseline} s)"


def _ratio(data_dir: Path, body: Path) -> tuple[_Ratio, _Watch]:
    accepted_s, baseline_s = [], []
    with _server(data_dir) as server, _watched(server) as watch:
        for _ in range(N_TURNS):
            baseline_s.append(_baseline_s(body))
            seconds, status, _ = post(server, body)
            assert status == 200, status
            accepted_s.append(seconds)
    return _Ratio(accepted_s, baseline_s), watch


def write_body(file: Path, shape: str) -> None:
    """Write a batch of exactly N requests and N_BYTES; `shape` is one of SHAPES."""
    head, tail = SHAPES[shape]
    n_text = (N_BYTES - len(b'{"requests":[]}') + 1) // N - len(head + tail) - 1
    with file.open("wb") as body:
        body.write(b'{"requests":[')
        for index in range(N):
            text = f"{index} What is the capital of the country of this customer? ".encode().ljust(n_text, b"x")
            body.write((b"," if index else b"") + head + text + tail)
        body.write(b" " * (N_BYTES - body.tell() - 2) + b"]}")


def _baseline_s(file: Path) -> float:
    """Return how long orjson and pydantic take for the body, in a subprocess."""
    command = [sys.executable, "-m", "tests.benchmarks.intake", "baseline", str(file)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _measure_baseline(file: Path) -> None:
    body = file.read_bytes()
    started = time.perf_counter()
    batch = CreateBatch.model_validate(orjson.loads(body))
    print(time.perf_counter() - started)
    assert len(batch.requests) == N


@contextlib.contextmanager
def _server(data_dir: Path) -> Iterator[LiveServer]:
    agents = data_dir.with_suffix(".yaml")
    agents.write_text(AGENTS)
    with live_server(data_dir, "--max-in-flight", "1", agents=agents) as server:
        small = data_dir.with_suffix(".json")
        small.write_bytes(b'{"requests":[]}')
        assert post(server, small)[1] == 400  # imports the code
        yield server


def post(
    server: LiveServer, file: Path, path: str = "/v1/messages/batches", content_type: str = "application/json"
) -> tuple[float, int, bool]:
    """Send a body; returns the seconds until the response, its status, and whether it has a Retry-After."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=600)
    with contextlib.closing(connection), file.open("rb") as body:
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", content_type)
        connection.putheader("Content-Length", str(file.stat().st_size))
        started = time.monotonic()
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
            connection.sock.sendfile(body)
        answer = connection.getresponse()
        answer.read()
        return time.monotonic() - started, answer.status, "Retry-After" in answer.headers


def _post_many(server: LiveServer, file: Path) -> tuple[int, tuple[int, bool]]:
    """Send as many bodies at once as allowed, and one more; returns how many were accepted, and the last response."""
    with ThreadPoolExecutor(N_AT_ONCE) as pool:
        sent = [pool.submit(post, server, file) for _ in range(N_AT_ONCE)]
        while _n_uploads(server) < N_AT_ONCE:
            time.sleep(0.01)
        _, status, has_time = post(server, file)
        return [future.result()[1] for future in sent].count(200), (status, has_time)


def _n_uploads(server: LiveServer) -> int:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return int(float(text.partition("\nbatchray_uploads ")[2].split()[0]))


class _Watch(threading.Thread):
    """Watches the memory of a server and its children, while a subprocess polls /livez."""

    def __init__(self, server: LiveServer) -> None:
        super().__init__(daemon=True)
        self._server, self._is_over = server, threading.Event()
        self._idle_mb = self._peak_mb = anonymous_mb(server.pid)
        self.slowest_ms = 0.0

    @property
    def grown_mb(self) -> float:
        return self._peak_mb - self._idle_mb

    def __str__(self) -> str:
        return f"memory +{self.grown_mb:.0f} MB, /livez at most {self.slowest_ms:.0f} ms"

    def run(self) -> None:
        while not self._is_over.wait(0.05):
            self._peak_mb = max(self._peak_mb, anonymous_mb(self._server.pid))

    def stop(self) -> None:
        self._is_over.set()
        self.join()


@contextlib.contextmanager
def _watched(server: LiveServer) -> Iterator[_Watch]:
    command = [sys.executable, "-m", "tests.benchmarks.intake", "livez", server.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as poller:
        assert poller.stdout is not None
        assert poller.stdout.readline() == "polling\n"
        watch = _Watch(server)
        watch.start()
        try:
            yield watch
        finally:
            watch.stop()
            watch.slowest_ms = float(poller.communicate()[0])


def _poll_livez(url: str) -> None:
    """Poll every 50 ms until standard input ends, and print the slowest response in milliseconds."""
    is_over = threading.Event()
    threading.Thread(target=when_input_ends, args=(is_over.set,), daemon=True).start()
    connection, slowest_s = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60), 0.0
    with contextlib.closing(connection):
        for n in itertools.count():
            started = time.monotonic()
            connection.request("GET", "/livez")
            connection.getresponse().read()
            slowest_s = max(slowest_s, time.monotonic() - started)
            if n == 0:
                print("polling", flush=True)
            if is_over.wait(0.05):
                break
    print(slowest_s * 1e3)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["baseline", file]:
            _measure_baseline(Path(file))
        case ["livez", url]:
            _poll_livez(url)
        case _:
            main()
