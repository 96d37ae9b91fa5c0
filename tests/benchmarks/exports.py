"""Export of 1,000,000 outcomes to Parquet: the memory that it needs, and its speed.

Limits: 150 MB above the memory at its start; every outcome is in the parts once.  An export that is killed in the
middle and repeated has the same parts, and no others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from batchray.schema import item_id, message_id, new_job_id, run_id, step_id
from batchray.store import NewAttempt, NewItem, NewJob, NewOutcome, Store
from batchray.store.records import LedJob
from batchray.views.exports import MANIFEST
from tests.benchmarks.harness import data_dir, report
from tests.polling import until

_AT_ONCE = 5_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--outcomes", type=int, default=1_000_000)
    parser.add_argument("--make", type=Path)
    parser.add_argument("--export", nargs=3)
    given = parser.parse_args()
    if given.make is not None:
        print(_make(given.make, given.outcomes))
    elif given.export is not None:
        data, job_id, parts = given.export
        print(*_export(Path(data), job_id, Path(parts)))
    else:
        with data_dir() as data:
            _measure(data, given.outcomes)


def _measure(data: Path, n: int) -> None:
    job_id = _output("--make", str(data), "--outcomes", str(n)).strip()
    whole, repeated = data / "parts", data / "repeated"
    start_mb, peak_mb, took_s = map(float, _output("--export", str(data), job_id, str(whole)).split())
    n_parts = _kill_export(data, job_id, repeated)
    _output("--export", str(data), job_id, str(repeated))
    n_once, is_same, above = _n_in_order(whole), _is_same(whole, repeated), peak_mb - start_mb
    report(
        [
            f"{n:,} outcomes in {took_s:.1f} s, {took_s / n * 1e6:.0f} us each; {n_once:,} in the parts once",
            f"killed after {n_parts} parts and repeated: {'the same parts' if is_same else 'OTHER PARTS'}",
            f"memory {start_mb:.0f} MB at the start, {peak_mb:.0f} MB at most: {above:.0f} MB above it (limit 150)",
        ],
        is_held=above <= 150 and n_once == n and is_same,
    )


def _kill_export(data: Path, job_id: str, parts: Path) -> int:
    """Kill an export once its manifest names a part and the next one is begun; return how many it names."""
    command = [sys.executable, "-m", __spec__.name, "--export", str(data), job_id, str(parts)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until(lambda: process.poll() is not None or (_manifest(parts) and _is_writing(parts)), timeout_s=120)
        process.kill()
    assert process.returncode < 0, "it ended before it could be killed; take more --outcomes"
    return len(_manifest(parts))


def _manifest(parts: Path) -> list[dict[str, Any]]:
    """Return the complete parts of an export."""
    file = parts / MANIFEST
    return orjson.loads(file.read_bytes())["parts"] if file.exists() else []


def _is_writing(parts: Path) -> bool:
    return len(list(parts.iterdir())) > len(_manifest(parts)) + 1


def _files(parts: Path) -> list[Path]:
    """Return the parts of an export.  Raises AssertionError if the directory has other files."""
    files = [parts / part["file"] for part in _manifest(parts)]
    assert sorted(parts.iterdir()) == sorted([*files, parts / MANIFEST])
    return files


def _n_in_order(parts: Path) -> int:
    """Return how many of the first indexes the parts have, each once and in order; -1 if they have anything else."""
    import pyarrow.parquet as pq  # not by the process whose memory is measured, before it is

    n = 0
    for file in _files(parts):
        indexes = pq.read_table(file, columns=["index"])["index"].to_pylist()
        if indexes != list(range(n, n + len(indexes))):
            return -1
        n += len(indexes)
    return n


def _is_same(parts: Path, others: Path) -> bool:
    import pyarrow.parquet as pq

    pairs = zip(_files(parts), _files(others), strict=True)
    return all(pq.read_table(file).equals(pq.read_table(other)) for file, other in pairs)


def _output(*arguments: str) -> str:
    """Return what this program says in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _make(data: Path, n: int) -> str:
    """Store a job with outcomes, as the driver would write them; return its id."""
    job_id = new_job_id()
    agents = {"a": {"agent": {"id": "a", "model": "offline/scripted"}, "provider": None}}
    with Store.open(data) as store:
        store.jobs.create(NewJob(job_id, lambda ids: agents), _items(n))
        job = store.jobs.start(job_id)
        for first in range(0, n, _AT_ONCE):
            _write(store, job, range(first, min(first + _AT_ONCE, n)))
    return job_id


def _items(n: int) -> Iterator[NewItem]:
    for index in range(n):
        request = {"agent_id": "a", "custom_id": f"c-{index}", "input": f"What is {index}? {'context ' * 10}"}
        yield NewItem("a", f"c-{index}", orjson.dumps(request))


def _write(store: Store, job: LedJob, indexes: range) -> None:
    store.outcomes.write(job, [NewAttempt(index, 1) for index in indexes])
    store.outcomes.write(job, outcomes=[_outcome(job.id, index) for index in indexes])


def _outcome(job_id: str, index: int) -> NewOutcome:
    message = {
        "id": message_id(job_id, index, 1),
        "role": "assistant",
        "agent_id": "a",
        "model": "offline/scripted",
        "content": [{"type": "text", "text": f"It is {index}. {'word ' * 20}"}],
        "step_id": step_id(job_id, index, 1),
        "run_id": run_id(job_id, index),
        "batch_item_id": item_id(job_id, index),
        "created_at": "2026-01-02T03:04:05.678901Z",
    }
    is_good = index % 10 != 0
    return NewOutcome(
        index=index,
        attempt=1,
        status="succeeded" if is_good else "errored",
        stop_reason="end_turn" if is_good else "error",
        error=None if is_good else {"type": "ValueError", "message": "no", "traceback": "line\n" * 20},
        usage={"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30, "step_count": 1},
        queued_ns=5,
        ttft_ns=6,
        duration_ns=7,
        messages=orjson.dumps([message] if is_good else []),
    )


def _export(data: Path, job_id: str, parts: Path) -> tuple[float, float, float]:
    """Export in this fresh process; return the memory at the start and at most in MB, and seconds."""
    from batchray.jobs.handle import Job

    job = Job(job_id, data)
    job.record()
    start_mb = _memory_mb("VmRSS:")
    start = time.monotonic()
    job.to_parquet(parts)
    return start_mb, _memory_mb("VmHWM:"), time.monotonic() - start


def _memory_mb(name: str) -> float:
    return int(Path("/proc/self/status").read_text().partition(name)[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
