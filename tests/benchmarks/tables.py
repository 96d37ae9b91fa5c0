"""100,000 rows of Parquet as a batch of a model without latency, 256 at once: CPU of the rows, and the driver's memory.

Limits: reading the table and the rows of the results takes at most 10 % of the run's CPU; 300 MB; every row is equal.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

import batchray
from batchray.batch.formats.options import InputOptions
from batchray.batch.formats.recognize import Table, open_batch
from batchray.batch.rules import KnownAgent
from batchray.store import Store
from batchray.views.carried import CarriedRows
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
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        out_s, n_equal = _carried_s(job, file)
    share = (in_s + out_s) / run_s
    report(
        [
            f"the run           {run_s:7.2f} s of CPU in all processes, {run_s / n_rows * 1e3:.2f} ms a row",
            f"the table read    {in_s:7.2f} s, {in_s / n_rows * 1e6:.1f} us a row",
            f"rows of results   {out_s:7.2f} s, {out_s / n_rows * 1e6:.1f} us a row; {n_equal:,} of {n_rows:,} equal",
            f"share {share:.3f} (limit 0.10); driver {peak_mb:.0f} MB (limit 300)",
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


def _carried_s(job: batchray.Job, file: Path) -> tuple[float, int]:
    """Return the CPU seconds of reading the rows of all results, and how many are as they were in the file."""
    source = pyarrow.parquet.ParquetFile(file)
    expected = itertools.chain.from_iterable(batch.to_pylist() for batch in source.iter_batches(1000))
    spent_s, n_equal = 0.0, 0
    with Store.open_for_reading(job.data_dir) as store:
        record = store.jobs.get(job.id)
        rows = CarriedRows(lambda index: store.items.carried_columns(record, index))
        for index, row in enumerate(expected):
            start = time.process_time()
            found = rows.row(index)
            spent_s += time.process_time() - start
            n_equal += found == row
    source.close()
    return spent_s, n_equal


if __name__ == "__main__":
    main()
