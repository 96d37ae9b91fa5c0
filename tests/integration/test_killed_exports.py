"""Exports in a process that is killed in the middle, and made again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow.parquet as pq

import batchray
from batchray import Agent, AgentRequest

# Both exports stop in the middle: the one of parts in its second part.
_SCRIPT = """
import sys, threading, time
from pathlib import Path
from batchray.jobs.handle import Job
from batchray.views import exports, result_tables

result_tables._BLOCK_ROWS, exports._PART_ROWS = 1, 2
made, read = result_tables.ResultTables._page, Job._read_page
done = threading.local()

def page(self, stored):
    done.n = getattr(done, "n", 0) + 1
    if done.n == 4:
        print("now", flush=True)
        time.sleep(60)
    return made(self, stored)

result_tables.ResultTables._page = page
Job._read_page = lambda self, query: read(self, query)[:1]
job = Job(sys.argv[1], Path(sys.argv[2]))
threading.Thread(target=job.export, args=(sys.argv[3], "parquet")).start()
job.export(sys.argv[4])
"""


def answer(request: AgentRequest) -> str:
    return f"{request.input}!"


def test_a_killed_export_leaves_nothing_half_and_the_next_one_has_the_same_content(tmp_path: Path) -> None:
    requests = [{"agent_id": "a", "input": str(n)} for n in range(7)]
    agents = [Agent(id="a", run=answer)]
    job = batchray.run(requests, agents, data_dir=tmp_path / "data", executor="local", progress=False)
    parts, file = tmp_path / "parts", tmp_path / "out.csv"
    command = [sys.executable, "-c", _SCRIPT, job.id, str(job.data_dir), str(parts), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"now\n"] * 2
        process.kill()

    assert not file.exists()
    assert [each.name for each in parts.glob("*.parquet")] == ["part-00000.parquet"]
    manifest = orjson.loads((parts / "_manifest.json").read_bytes())
    assert [part["file"] for part in manifest["parts"]] == ["part-00000.parquet"]

    first = (parts / "part-00000.parquet").read_bytes()
    job.to_parquet(parts)
    assert pq.read_table(parts).equals(job.to_arrow())
    assert (parts / "part-00000.parquet").read_bytes() == first
    names = sorted(each.name for each in parts.iterdir())
    assert names == ["_manifest.json", "part-00000.parquet", "part-00001.parquet"]

    job.export(file)
    job.export(tmp_path / "whole.csv")
    assert file.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob("*.part"))
