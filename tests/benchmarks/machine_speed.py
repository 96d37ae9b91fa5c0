"""How fast the machine is while a benchmark runs: `python -m tests.benchmarks.machine_speed` measures until it is told.

Cores of cloud machines are shared with other machines, and their speed may halve within minutes.  A subprocess does
the same small work five times a second, and notes the CPU time that it took.  Waiting for a core costs no CPU time, so
the load of the benchmark itself counts little.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from tests.benchmarks.harness import when_input_ends

_INTERVAL_S = 0.2
_DOCUMENT = json.dumps([{"index": index, "text": "word " * 10, "numbers": [1.5] * 5} for index in range(500)])


class Sample(NamedTuple):
    """The CPU time of the work that ended at a moment of the monotonic clock."""

    at_s: float
    cpu_s: float


class MachineSpeed:
    """Measures inside its block."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []

    def __enter__(self) -> MachineSpeed:
        command = [sys.executable, "-m", "tests.benchmarks.machine_speed"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        out, _ = self._process.communicate()  # which ends its input
        self._samples = [Sample(*map(float, line.split())) for line in out.splitlines()]

    def cpu_s(self, start_s: float, end_s: float) -> float:
        """Return the median CPU time of the work between two moments, or nearest to them.  Call it after the block."""
        middle = (start_s + end_s) / 2
        nearest = min(self._samples, key=lambda each: abs(each.at_s - middle))
        found = [each.cpu_s for each in self._samples if start_s <= each.at_s <= end_s]
        return statistics.median(found or [nearest.cpu_s])


def main() -> None:
    """Measure until the input ends, then print the samples."""
    is_over, samples = threading.Event(), list[Sample]()
    threading.Thread(target=when_input_ends, args=(is_over.set,), daemon=True).start()
    while not is_over.wait(_INTERVAL_S):
        start = time.thread_time()
        json.dumps(json.loads(_DOCUMENT))
        samples.append(Sample(time.monotonic(), time.thread_time() - start))
    for sample in samples:
        print(*sample)


if __name__ == "__main__":
    main()
