"""How the commands find jobs: by id, by a beginning of it, as `last`, several at once, and where the config says."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import batchray
from batchray.cli.main import cli
from batchray.errors import (
    AmbiguousJobError,
    BatchrayError,
    ConfigError,
    JobInterruptedError,
    UnknownJobError,
    UsageError,
)
from batchray.jobs.control import ControlFile
from batchray.store import NewItem, NewJob, Store

FIRST, SECOND, THIRD = (
    "job-4f000000-0000-4000-8000-000000000001",
    "job-4f000000-0000-4000-8000-000000000002",
    "job-5a000000-0000-4000-8000-000000000003",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data directory with three jobs, in the order of their ids, and a single run after them."""
    with Store.open(tmp_path / "data") as store:
        for job_id in (FIRST, SECOND, THIRD):
            store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b'{"agent_id":"a","input":"x"}')] * 2)
        run = NewJob("job-60000000-0000-4000-8000-000000000004", lambda ids: {}, kind="run")
        store.jobs.create(run, [NewItem("a", None, b'{"agent_id":"a","input":"x"}')])
    return tmp_path / "data"


@pytest.fixture
def config(data: Path, tmp_path: Path) -> str:
    """Return a server's config file that names the data directory."""
    file = tmp_path / "batchray.yaml"
    file.write_text(f"data_dir: {data}\nport: 0\n")
    return str(file)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=True)


def shown(*arguments: str) -> list[str]:
    """Return the ids that `status` prints."""
    done = call("status", *arguments)
    assert done.exit_code == 0, done
    return [line.split()[0] for line in done.output.splitlines() if line.startswith("job-")]


def refused(kind: type[BatchrayError], *arguments: str) -> str:
    """Return the sentence with which a command is refused."""
    done = call(*arguments)
    assert isinstance(done.exception, kind), done
    assert done.output == ""
    return str(done.exception)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([FIRST], [FIRST]),
        ([FIRST[:-1] + "2"], [SECOND]),
        (["job-5"], [THIRD]),
        (["5a"], [THIRD]),
        (["last"], [THIRD]),
        ([THIRD, FIRST], [THIRD, FIRST]),
        (["last", "5a", FIRST, THIRD], [THIRD, FIRST]),
    ],
)
def test_a_job_is_found_by_its_id_a_beginning_of_it_or_as_the_last_one(
    names: list[str], found: list[str], data: Path
) -> None:
    assert shown(*names, "--data-dir", str(data)) == found


def test_a_beginning_that_several_jobs_share_is_refused_with_their_ids(data: Path) -> None:
    sentence = refused(AmbiguousJobError, "status", "4f", "--data-dir", str(data))
    assert sentence == f"'4f' is the beginning of several jobs' ids: {SECOND}, {FIRST}; type more of the id"


@pytest.mark.parametrize("name", ["job-9", "nothing", "LAST", "job-%", "\u00e9", FIRST[:-1] + "9"])
@pytest.mark.parametrize("command", ["status", "results", "export", "cancel", "pause", "unpause", "resume", "retry"])
def test_an_unknown_job_is_refused_and_nothing_is_done(command: str, name: str, data: Path) -> None:
    sentence = refused(UnknownJobError, command, name, "--data-dir", str(data))
    assert sentence == f"no job {name!r} in {data}; `batchray status` lists the jobs of a data directory"


def test_last_of_no_jobs_says_how_to_make_one(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    sentence = refused(UsageError, "results", "last", "--data-dir", str(tmp_path))
    assert sentence == f"there is no job in {tmp_path} yet; `batchray run` creates one"


@pytest.mark.parametrize("command", ["resume", "retry"])
@pytest.mark.parametrize("name", ["last", "4f", FIRST])
def test_a_directory_without_jobs_is_named(command: str, name: str, tmp_path: Path) -> None:
    sentence = refused(ConfigError, command, name, "--executor", "local", "--data-dir", str(tmp_path / "nowhere"))
    assert sentence == f"no batchray data in {tmp_path}/nowhere; give the --data-dir that the job was run with"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "command", ["status", "status last", "results last", "export last", "show last", "cancel last", "db check"]
)
def test_a_directory_without_jobs_has_nothing_to_read(command: str, tmp_path: Path) -> None:
    sentence = refused(ConfigError, *command.split(), "--data-dir", str(tmp_path / "nowhere"))
    assert sentence == f"no batchray data in {tmp_path}/nowhere; give the --data-dir that the job was run with"


def test_a_data_directory_that_cannot_be_made_is_unusable_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "agents.yaml").write_text("agents: [{id: a, model: offline/rules}]")
    (tmp_path / "requests.jsonl").write_text('{"agent_id": "a", "input": "x"}')
    inputs = [str(tmp_path / "requests.jsonl"), "--agents", str(tmp_path / "agents.yaml"), "--executor", "local"]
    sentence = refused(ConfigError, "run", *inputs, "--data-dir", str(tmp_path / "file" / "data"))
    assert sentence == f"cannot write to {tmp_path}/file/data: Not a directory"


def test_one_unknown_name_among_others_stops_all_of_them(data: Path) -> None:
    refused(UnknownJobError, "cancel", FIRST, "job-9", "--data-dir", str(data))
    with Store.open_for_reading(data) as store:
        assert store.jobs.get(FIRST).status == "created"


def test_several_jobs_are_cancelled_at_once(data: Path) -> None:
    assert call("cancel", FIRST, "5a", "--data-dir", str(data)).exit_code == 0
    with Store.open_for_reading(data) as store:
        assert [store.jobs.get(job_id).status for job_id in (FIRST, SECOND, THIRD)] == [
            "cancelled",
            "created",
            "cancelled",
        ]


def test_a_job_that_cannot_be_steered_is_reported_and_the_others_are_steered(data: Path) -> None:
    call("cancel", FIRST, "--data-dir", str(data))
    done = call("pause", SECOND, FIRST, THIRD, "--data-dir", str(data))
    assert done.exit_code == 2
    assert [line.partition(": ")[2][: len(FIRST) + 4] for line in done.output.splitlines()] == [
        f"job {SECOND}",
        f"job {FIRST}",
        f"job {THIRD}",
    ]


@pytest.mark.parametrize("command", ["pause", "unpause", "cancel"])
@pytest.mark.parametrize("has_writer", [False, True])
def test_steering_an_ended_job_is_refused_whether_its_store_has_a_writer_or_not(
    command: str, has_writer: bool, data: Path
) -> None:
    call("cancel", FIRST, "--data-dir", str(data))
    with Store.open(data) if has_writer else contextlib.nullcontext():
        done = call(command, FIRST, "--data-dir", str(data))
    assert (done.exit_code, "has already ended" in done.output) == (2, True), done.output


def test_the_status_of_a_named_job_is_the_summary_of_its_run(data: Path) -> None:
    text = call("status", FIRST, "--data-dir", str(data)).output
    assert f"{FIRST}  interrupted" in text
    assert "2 requests: job interrupted" in text
    assert re.search(r"not done +2 +100.0%", text), text
    call("cancel", FIRST, "--data-dir", str(data))
    text = call("status", FIRST, "--data-dir", str(data)).output
    assert "2 requests: job cancelled" in text
    # Items that never ran have no durations.
    assert len(re.findall(r"(?:before its start|start to first token|start to end)(?: +-){3} *\n", text)) == 3, text


def test_the_states_of_jobs_have_the_same_words_everywhere(data: Path) -> None:
    with Store.open(data) as store:
        for job_id in (FIRST, SECOND):
            store.mark_running(job_id)
            store.jobs.start(job_id)
        call("pause", SECOND, "--data-dir", str(data))
        printed = [json.loads(line) for line in call("status", "--json", "--data-dir", str(data)).output.splitlines()]
        listed = {job.id: job for job in batchray.jobs(data)}
    words = {FIRST: "running", SECOND: "paused", THIRD: "interrupted"}
    assert {line["id"]: line["status"] for line in printed if line["id"] in words} == words
    assert [listed[job_id].id for job_id in listed] == [THIRD, SECOND, FIRST]
    for job_id, word in words.items():
        assert repr(listed[job_id]) == f"<Job {job_id}: {word}, 0 of 2 done>"
    assert batchray.attach(THIRD, data).status == "interrupted"  # no process has the store open now


def test_days_0_asks_before_it_deletes_all_ended_jobs(data: Path) -> None:
    call("cancel", FIRST, "--data-dir", str(data))
    prune = ("db", "prune", "--days", "0", "--data-dir", str(data))
    refused = CliRunner().invoke(cli, prune, input="n\n")
    assert (refused.exit_code, "Delete all ended jobs of" in refused.output) == (1, True)
    assert FIRST in shown("--data-dir", str(data))
    assert CliRunner().invoke(cli, prune, input="y\n").exit_code == 0
    assert FIRST not in shown("--data-dir", str(data))
    call("cancel", SECOND, "--data-dir", str(data))
    assert call(*prune, "--yes").exit_code == 0
    assert SECOND not in shown("--data-dir", str(data))


def test_results_of_several_jobs_say_which_job_they_are_of(data: Path) -> None:
    call("cancel", FIRST, THIRD, "--data-dir", str(data))
    lines = [json.loads(line) for line in printed(data, FIRST, "last")]
    assert [(line["job_id"], line["index"]) for line in lines] == [(FIRST, 0), (FIRST, 1), (THIRD, 0), (THIRD, 1)]
    [line, _] = [json.loads(line) for line in printed(data, FIRST)]
    assert "job_id" not in line


def printed(data: Path, *names: str) -> list[str]:
    output = data / "results.jsonl"
    assert call("results", *names, "--output", str(output), "--data-dir", str(data)).exit_code == 0
    return output.read_text().splitlines()


def test_an_export_has_the_results_of_a_job_in_another_format(data: Path, tmp_path: Path) -> None:
    call("cancel", FIRST, "--data-dir", str(data))
    output = tmp_path / "out.jsonl"
    arguments = ("export", FIRST, "--format", "openai", "--output", str(output), "--data-dir", str(data))
    assert call(*arguments).exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert (output.read_text(), [line["error"]["code"] for line in lines]) == ("", ["batch_cancelled"] * 2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "name the --format of standard output: parquet, jsonl"),
        (("--output", "x"), "the name 'x' does not tell the format; name it: parquet, jsonl"),
        (
            ("--format", "parquet"),
            "Parquet is not written to standard output; name a file or a directory with --output PATH",
        ),
        (("--output", "no/x.csv"), "no/x.csv: cannot be written: No such file or directory"),
    ],
)
def test_an_export_that_cannot_be_written_says_why(arguments: tuple[str, ...], reason: str, data: Path) -> None:
    assert refused(UsageError, "export", FIRST, *arguments, "--data-dir", str(data)).startswith(reason)


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "last"),
        ("results", FIRST, "--output", "results.jsonl"),
        ("export", FIRST, "--output", "out.csv"),
        ("cancel", FIRST),
        ("db", "check"),
        ("db", "export", "--output", "all.jsonl"),
        ("db", "prune"),
        ("keys", "add", "alice"),
        ("keys", "list"),
    ],
    ids=" ".join,
)
def test_every_command_takes_the_data_directory_from_the_config(
    arguments: tuple[str, ...], config: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments, "--config", config)
    assert done.exit_code == 0, done
    assert not Path(".batchray").exists()


def test_a_variable_overrides_the_config_and_an_option_both(
    config: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.open(tmp_path / "empty").close()
    assert shown("last", "--config", config) == [THIRD]
    monkeypatch.setenv("BATCHRAY_DATA_DIR", str(tmp_path / "empty"))
    assert shown("--config", config) == []
    assert shown("last", "--config", config, "--data-dir", str(data)) == [THIRD]


@pytest.mark.parametrize("command", ["status", "results", "export", "cancel", "pause", "unpause"])
def test_a_config_that_cannot_be_read_is_refused(command: str) -> None:
    assert "nowhere.yaml: cannot be read" in refused(ConfigError, command, "last", "--config", "nowhere.yaml")


def test_a_control_request_reaches_each_of_several_running_jobs(data: Path) -> None:
    with Store.open(data) as store:
        for job_id in (FIRST, THIRD):
            store.mark_running(job_id)
        assert call("pause", FIRST, "last", "--data-dir", str(data)).exit_code == 0
    assert [ControlFile(data, job_id).read() for job_id in (FIRST, SECOND, THIRD)] == [
        {"is_paused": True},
        {},
        {"is_paused": True},
    ]


def test_an_interrupted_steering_names_the_command_that_continues(data: Path) -> None:
    done = call("unpause", FIRST, "--data-dir", str(data))
    assert "`batchray resume`" in done.output
    assert JobInterruptedError.__name__ not in done.output
