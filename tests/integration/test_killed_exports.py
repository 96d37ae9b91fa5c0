"""Exports in a process that is killed in the middle, and made again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

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


# A command that stops where it reads its first results.
_COMMAND = """
import sys, time
from batchray.cli.main import main
from batchray.jobs.handle import Job
from batchray.store.integrity import Integrity

def wait(*_):
    print("now", flush=True)
    time.sleep(60)

Job._read_page = Job.report = Job.brief_report = Integrity.readable_results = wait
main()
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


_NOT_WRITTEN = "export stopped; x.csv was not written; run the command again"


@pytest.mark.parametrize(
    ("number", "status", "command", "sentence"),
    [
        (signal.SIGTERM, 143, "export last --output x.csv", _NOT_WRITTEN),
        (signal.SIGINT, 130, "export last --output x.csv", _NOT_WRITTEN),
        (
            signal.SIGTERM,
            143,
            "export last --output x --format parquet",
            "export stopped; x has the parts that are comp",
        ),
        (
            signal.SIGTERM,
            143,
            "export last --output x --format atif",
            "export stopped; x has some of the files; run the",
        ),
        (
            signal.SIGTERM,
            143,
            "export last --format jsonl",
            "export stopped; the output is not complete; run the comma",
        ),
        (
            signal.SIGTERM,
            143,
            "results last --output x.jsonl",
            "results stopped; x.jsonl was not written; they are kept in",
        ),
        (signal.SIGTERM, 143, "db export --output x.csv", _NOT_WRITTEN),
        (signal.SIGTERM, 143, "report last", "report stopped; run the command again"),
        (signal.SIGTERM, 143, "show last", "show stopped; run the command again"),
    ],
)
def test_a_command_that_is_stopped_says_what_it_left(
    number: int, status: int, command: str, sentence: str, tmp_path: Path
) -> None:
    requests = [{"agent_id": "a", "input": "x"}]
    batchray.run(
        requests, [Agent(id="a", run=answer)], data_dir=tmp_path / ".batchray", executor="local", progress=False
    )
    line = [sys.executable, "-c", _COMMAND, *command.split()]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(number)
        assert process.wait(60) == status
        [said] = process.stderr.read().decode().strip().splitlines()
    assert said.removeprefix("batchray: ").startswith(sentence)
    assert not list(tmp_path.glob("x.*"))
