"""Where the command line writes results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchray.cli.main import cli
from batchray.cli.output import Shown, check_output, stream_of, write_results
from batchray.errors import BatchrayError, ConfigError
from batchray.executors import LocalExecutor
from batchray.jobs.driver import run_job
from batchray.jobs.handle import Job
from batchray.jobs.start import Output
from batchray.store import Store
from tests.builders.jobs import new_job, started


@pytest.fixture
async def ended(tmp_path: Path) -> Job:
    """Return a job with two results."""
    with Store.open(tmp_path / "data") as store:
        job_id = new_job(store, "echo", "fail")
        await run_job(await started(store, job_id), LocalExecutor())
    return Job(job_id, tmp_path / "data")


def read(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


async def test_a_file_behind_a_stream_is_appended_to(ended: Job, tmp_path: Path) -> None:
    file = tmp_path / "all.txt"
    with file.open("w") as redirected:
        redirected.write("before\n")
        redirected.flush()
        write_results([ended], Path(f"/dev/fd/{redirected.fileno()}"), Shown())
        redirected.write("after\n")
    first, *lines, last = file.read_text().splitlines()
    assert (first, [json.loads(line)["index"] for line in lines], last) == ("before", [0, 1], "after")


async def test_a_file_is_replaced_as_a_whole(ended: Job, tmp_path: Path) -> None:
    file, link = tmp_path / "results.jsonl", tmp_path / "link"
    file.write_text("earlier content\n" * 1000)
    link.symlink_to(file)
    write_results([ended], link, Shown(failed=True, include_input=True))
    (line,) = read(file.read_text())
    assert (line["index"], line["input"], link.is_symlink()) == (1, "text 1", True)


async def test_a_stream_that_is_not_open_is_an_error_in_one_sentence(ended: Job) -> None:
    closed = os.dup(1)
    os.close(closed)
    with pytest.raises(BatchrayError, match=f"/dev/fd/{closed} cannot be written: Bad file descriptor"):
        write_results([ended], Path(f"/dev/fd/{closed}"), Shown())


@pytest.mark.parametrize(
    ("name", "descriptor"),
    [("-", 1), ("/dev/stdout", 1), ("/dev/stderr", 2), ("/proc/self/fd/7", 7), ("x/-", None), ("/dev/null", None)],
)
def test_stream_of_recognises_the_names_of_streams(name: str, descriptor: int | None) -> None:
    assert stream_of(Path(name)) == descriptor


@pytest.mark.parametrize(
    ("name", "notice"),
    [
        ("x.csv", "will hold JSON Lines; `batchray export JOB --output FILE.csv` writes CSV"),
        ("X.JSON", "will hold JSON Lines; that is one object a line, not one JSON document"),
        ("x.jsonl.gz", "will hold JSON Lines; `batchray export JOB --output FILE.jsonl.gz` compresses them"),
        ("x.jsonl", ""),
        ("x", ""),
    ],
)
def test_a_name_that_promises_another_format_gets_a_notice(
    name: str, notice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_output(tmp_path / name) == Output(tmp_path / name)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert notice in printed.err
    assert bool(printed.err) == bool(notice)


def test_only_a_file_is_kept_for_a_later_run_and_it_must_be_writable(tmp_path: Path) -> None:
    assert [check_output(each) for each in (None, Path("-"), Path("/dev/stdout"))] == [None] * 3
    with pytest.raises(ConfigError, match="cannot be written"):
        check_output(tmp_path / "no" / "such" / "directory.jsonl")


@pytest.mark.parametrize(
    ("output", "reason"),
    [("/proc/x.jsonl", "No such file or directory"), ("long" * 63 + ".jsonl", "File name too long")],
)
def test_a_directory_that_takes_no_file_is_refused_before_the_run(
    output: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_output(Path(output))
    assert str(caught.value) == f"--output {output} cannot be written: {reason}"
    done = CliRunner().invoke(cli, ["db", "export", "--output", output])
    assert isinstance(done.exception, ConfigError)


@pytest.mark.parametrize(
    ("requests", "name"),
    [
        ("requests.jsonl", "requests.jsonl"),
        ("requests.jsonl", "agents.yaml"),
        ("requests.jsonl", "link.jsonl"),
        ("file://{}/requests.jsonl", "requests.jsonl"),
    ],
)
def test_an_output_that_is_an_input_is_refused_before_the_run(
    requests: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("requests.jsonl").write_text('{"agent_id": "a", "input": "x"}\n')
    Path("agents.yaml").write_text("agents: [{id: a, model: offline/rules}]")
    Path("link.jsonl").symlink_to("requests.jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = ["run", requests.format(tmp_path), "--agents", "agents.yaml", "--executor", "local", "--output", name]
    done = CliRunner().invoke(cli, run)
    assert isinstance(done.exception, ConfigError)
    assert f"--output {name} is an input of this command" in str(done.exception)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_check_of_an_output_leaves_files_as_they_are(tmp_path: Path) -> None:
    file, unfinished = tmp_path / "x.jsonl", tmp_path / "x.jsonl.part"
    check_output(file)
    assert list(tmp_path.iterdir()) == []
    file.write_text("earlier")
    unfinished.write_text("of another process")
    check_output(file)
    assert (file.read_text(), unfinished.read_text()) == ("earlier", "of another process")
