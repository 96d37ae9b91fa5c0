"""Time of `import batchray`, compared with the start of Python.

Limit: 0.15 s beyond Python itself; loads neither ray nor aiohttp.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.benchmarks.harness import report

REPEATS = 15


def seconds(statement: str) -> float:
    """Return the median wall time of a fresh interpreter that runs one statement."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    bare, ours = seconds("pass"), seconds("import batchray")
    check = "import sys, batchray; print(*({'ray', 'aiohttp'} & sys.modules.keys()))"
    heavy = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout.split()
    report(
        [
            f"python -c pass              {bare * 1e3:6.1f} ms",
            f"python -c 'import batchray' {ours * 1e3:6.1f} ms; of ray and aiohttp it loads: {heavy or 'neither'}",
            f"beyond Python itself: {(ours - bare) * 1e3:.1f} ms (limit 150 ms)",
        ],
        is_held=ours - bare < 0.15 and not heavy,
    )


if __name__ == "__main__":
    main()
