"""100,000 rows of Parquet through a model without latency, 256 at once, and back into Parquet, joined with the results.

Limits: reading the table and writing the joined one takes at most 10 % of the run's CPU; the driver's memory has a peak
of 300 MB; every row has the columns that it came with, and its own answer.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

import batchray
from batchray.batch.formats.options import InputOptions
from batchray.batch.formats.recognize import Table, open_batch
from batchray.batch.rules import KnownAgent
from tests.benchmarks.harness import TreeCpu, data_dir, report

AGENT = batchray.Agent(id="a", model="offline/scripted", script=({"text": "Done."},))
MAPPING: dict[str, Any] = {"agent": "a", "input_column": "question", "id_column": "id"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--prepare", type=Path)
    given = parser.parse_args()
    n_rows: int = given.rows
    if given.prepare is not None:  # in a process of its own, whose memory is not the driver's
        pyarrow.parquet.write_table(_table(n_rows), given.prepare)
        print(_read_s(given.prepare, given.prepare.parent))
        return
    with tempfile.TemporaryDirectory(prefix="br") as directory, data_dir() as data:
        file = Path(directory) / "rows.parquet"
        prepare = [sys.executable, "-m", __spec__.name, "--rows", str(n_rows), "--prepare", str(file)]
        in_s = float(subprocess.run(prepare, check=True, capture_output=True, text=True).stdout)
        cpu = TreeCpu()
        job = batchray.run(file, [AGENT], max_in_flight=256, progress=False, data_dir=data, **MAPPING)
        run_s = sum(cpu.spent().values())
        joined = Path(directory) / "joined"
        start = time.process_time()
        job.to_parquet(joined)
        out_s = time.process_time() - start
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        n_equal = _n_equal(file, joined)
    share = (in_s + out_s) / run_s
    report(
        [
            f"the run           {run_s:7.2f} s of CPU in all processes, {run_s / n_rows * 1e3:.2f} ms a row",
            f"the table read    {in_s:7.2f} s, {in_s / n_rows * 1e6:.1f} us a row",
            f"joined, written   {out_s:7.2f} s, {out_s / n_rows * 1e6:.1f} us a row; {n_equal:,} of {n_rows:,} equal",
            f"read + write: share {share:.3f} (limit 0.10); driver {peak_mb:.0f} MB (limit 300)",
        ],
        is_held=share <= 0.1 and peak_mb <= 300 and n_equal == n_rows,
    )


def _table(n_rows: int) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(n_rows)),
            "question": [f"What is {i} plus {i}? {'context ' * 20}" for i in range(n_rows)],
            "label": [f"label {i % 7}" for i in range(n_rows)],
            "score": [i / 3 for i in range(n_rows)],
            "tags": [["a", "b"] if i % 2 else [] for i in range(n_rows)],
        }
    )


def _read_s(file: Path, directory: Path) -> float:
    """Return the CPU seconds of reading a table and making its requests."""
    start = time.process_time()
    batch = open_batch(file, {"a": KnownAgent()}, directory, InputOptions(**MAPPING))
    assert isinstance(batch, Table)
    sum(len(part.requests) for part in batch.parts)
    return time.process_time() - start


def _n_equal(file: Path, joined: Path) -> int:
    """Return how many rows of the joined parts, in their order, are those of the file, with an answer."""
    expected, n_equal = _rows(file), 0
    for part in sorted(joined.glob("*.parquet")):
        for row in _rows(part):
            given = next(expected)
            n_equal += {name: row[name] for name in given} == given and row["text"] == "Done."
    return n_equal


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with pyarrow.parquet.ParquetFile(file) as source:
        yield from itertools.chain.from_iterable(batch.to_pylist() for batch in source.iter_batches(1000))


if __name__ == "__main__":
    main()
