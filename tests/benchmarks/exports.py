"""Export of 1,000,000 outcomes to Parquet: the memory that it needs, and its speed.

Limit: 150 MB above the memory at its start; every outcome is in the parts once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from batchray.schema import item_id, message_id, new_job_id, run_id, step_id
from batchray.store import NewAttempt, NewItem, NewJob, NewOutcome, Store
from batchray.store.records import LedJob
from tests.benchmarks.harness import data_dir, report

_AT_ONCE = 5_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--outcomes", type=int, default=1_000_000)
    parser.add_argument("--make", type=Path)
    parser.add_argument("--export", nargs=2)
    given = parser.parse_args()
    if given.make is not None:
        print(_make(given.make, given.outcomes))
    elif given.export is not None:
        print(*_export(Path(given.export[0]), given.export[1]))
    else:
        with data_dir() as data:
            _measure(data, given.outcomes)


def _measure(data: Path, n: int) -> None:
    job_id = _told("--make", str(data), "--outcomes", str(n)).strip()
    start_mb, peak_mb, took_s, n_rows = map(float, _told("--export", str(data), job_id).split())
    above = peak_mb - start_mb
    report(
        [
            f"{n:,} outcomes in {took_s:.1f} s, {took_s / n * 1e6:.0f} us each; {n_rows:,.0f} in the parts",
            f"memory {start_mb:.0f} MB at the start, {peak_mb:.0f} MB at most: {above:.0f} MB above it (limit 150)",
        ],
        is_held=above <= 150 and n_rows == n,
    )


def _told(*arguments: str) -> str:
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


def _export(data: Path, job_id: str) -> tuple[float, float, float, int]:
    """Export in this fresh process; return the memory at the start and at most in MB, seconds, and the rows."""
    from batchray.jobs.handle import Job

    job = Job(job_id, data)
    job.record()
    start_mb = _memory_mb("VmRSS:")
    start = time.monotonic()
    job.to_parquet(data / "parts")
    took_s = time.monotonic() - start
    peak_mb = _memory_mb("VmHWM:")
    import pyarrow.parquet as pq

    n_rows = sum(pq.read_metadata(part).num_rows for part in (data / "parts").glob("*.parquet"))
    return start_mb, peak_mb, took_s, n_rows


def _memory_mb(name: str) -> float:
    return int(Path("/proc/self/status").read_text().partition(name)[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
