"""Peak memory of the driver and the job actor: 100,000 requests of 500 bytes against 10,000.

Limit: within 10 % of each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil

import batchray
from tests.benchmarks.harness import JobActorPeak, data_dir, peak_kb, report

SMALL, LARGE = 10_000, 100_000
AGENT = {"id": "a", "model": "offline/scripted", "script": [{"text": "word " * 20}]}


def _write_batch(file: Path, n: int) -> None:
    with file.open("w") as lines:
        for index in range(n):
            request = {"agent_id": "a", "input": f"{index} "}
            request["input"] += "x" * (499 - len(json.dumps(request)))
            lines.write(json.dumps(request) + "\n")


def run_one(n: int) -> tuple[int, int]:
    """Run a batch of n in this fresh process; returns the driver's and the job actor's peak in kB."""
    with data_dir() as directory:
        directory.mkdir()
        _write_batch(directory / "requests.jsonl", n)
        watch = JobActorPeak()
        watch.start()
        job = batchray.run(directory / "requests.jsonl", [AGENT], data_dir=directory, progress=False)
        assert job.counts["succeeded"] == n, job.counts
        return peak_kb(psutil.Process().pid), watch.stop()


def main() -> None:
    """Measure and print."""
    peaks = {}
    for n in (SMALL, LARGE):
        command = [sys.executable, "-m", "tests.benchmarks.memory", str(n)]
        peaks[n] = [
            int(kb) for kb in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        ]
    ratios = [large / small for small, large in zip(peaks[SMALL], peaks[LARGE], strict=True)]
    report(
        [
            *(
                f"{n:>7,} requests: driver {driver / 1024:.1f} MB, job actor {actor / 1024:.1f} MB"
                for n, (driver, actor) in peaks.items()
            ),
            f"large / small: driver {ratios[0]:.3f}, job actor {ratios[1]:.3f} (limit 1.10)",
        ],
        is_held=all(ratio <= 1.10 for ratio in ratios),
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(*run_one(int(sys.argv[1])))
    else:
        main()
