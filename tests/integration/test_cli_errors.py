"""The command refuses unusable input: exit status 2, one sentence, and no job."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from batchray.store import Store
from tests.builders.batches import BAD_AGENTS_FILES, BAD_BODIES, BAD_REQUESTS, GOOD
from tests.builders.commands import AGENTS, Done, command, local

KEY = "sk-proj-0123456789abcdefABCDEF"


def _main(arguments: list[str], directory: str, out: str, err: str) -> None:
    """Run the command in this process, which is a fork of one that has imported it."""
    from batchray.cli.main import main

    os.chdir(directory)
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        del os.environ[name]
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = ["batchray", *arguments]
    main()


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Return what starts processes that need not import everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["batchray.api", "batchray.cli.main", "batchray.views.progress_display", __name__])
    return context


@pytest.fixture
def run(processes: multiprocessing.context.ForkServerContext, tmp_path: Path) -> Callable[..., Done]:
    """Run a command in a directory of the test's own."""

    def run(*arguments: str) -> Done:
        out, err = tmp_path / "out.txt", tmp_path / "err.txt"
        process = processes.Process(target=_main, args=(list(arguments), str(tmp_path), str(out), str(err)))
        process.start()
        process.join(60)
        return Done(process.exitcode, out.read_text(), err.read_text())

    return run


def refused(done: Done, directory: Path) -> str:
    """Return the one sentence of a refusal that left no job behind."""
    assert (done.status, done.out) == (2, ""), done
    (sentence,) = done.err.splitlines()
    assert sentence.startswith("batchray: ")
    if (directory / ".batchray" / "batchray.db").exists():
        with Store.open_for_reading(directory / ".batchray") as store:
            assert store.jobs.find() == []
    return sentence.removeprefix("batchray: ")


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_line_is_refused(name: str, run: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").write_text(AGENTS)
    (tmp_path / "requests.jsonl").write_bytes(GOOD + b"\n" + BAD_REQUESTS[name].request + b"\n" + GOOD + b"\n")
    sentence = refused(run(*local("requests.jsonl")), tmp_path)
    assert sentence.startswith("requests.jsonl, line 2: ")
    assert BAD_REQUESTS[name].reason in sentence


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused(name: str, run: Callable[..., Done], tmp_path: Path) -> None:
    body, reason = BAD_BODIES[name]
    (tmp_path / "agents.yaml").write_text(AGENTS)
    (tmp_path / "batch.json").write_bytes(body)
    sentence = refused(run(*local("batch.json")), tmp_path)
    assert sentence.startswith("batch.json")
    assert sentence.removeprefix("batch.json").lstrip(":, ").startswith(reason)


@pytest.mark.parametrize("name", BAD_AGENTS_FILES)
def test_a_bad_agents_file_is_refused(name: str, run: Callable[..., Done], tmp_path: Path) -> None:
    content, reason = BAD_AGENTS_FILES[name]
    (tmp_path / "agents.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "requests.jsonl").write_bytes(GOOD)
    assert reason in refused(run(*local("requests.jsonl")), tmp_path)


@pytest.mark.parametrize(
    ("agents", "arguments", "reason"),
    [
        (
            "agents: [{id: a, model: offline/rules, tools: ['nowhere_at_all:f']}]",
            local("requests.jsonl"),
            "agent 'a': 'nowhere_at_all:f' cannot be imported: ModuleNotFoundError",
        ),
        (AGENTS, local("nowhere.jsonl"), "nowhere.jsonl: cannot be read: No such file or directory"),
        (
            AGENTS,
            local("requests.jsonl", "--output", "nowhere/results.jsonl"),
            "--output nowhere/results.jsonl cannot be",
        ),
        (AGENTS, local("requests.jsonl", "--config", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (AGENTS, ["run", "requests.jsonl"], "give the agents that the requests name: --agents FILE"),
    ],
    ids=["tool", "requests", "output", "config", "agents"],
)
def test_a_command_without_a_file_module_or_agents_that_it_needs_is_refused(
    agents: str, arguments: list[str], reason: str, run: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "agents.yaml").write_text(agents)
    (tmp_path / "requests.jsonl").write_bytes(GOOD)
    assert reason in refused(run(*arguments), tmp_path)


def test_a_bad_line_of_standard_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").write_text(AGENTS)
    done = command(tmp_path, *local("-"), given=GOOD + b"\nhello\n")
    assert refused(done, tmp_path).startswith("line 2: not JSON: ")


def test_a_good_batch_of_standard_input_is_run(tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").write_text(AGENTS)
    done = command(tmp_path, *local("-", "--output", "results.jsonl"), given=b'{"requests":[%s,%s]}' % (GOOD, GOOD))
    assert (done.status, done.out.startswith("job-")) == (0, True)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2


def test_no_key_is_printed_or_kept(tmp_path: Path) -> None:
    """The provider's address leads nowhere, so that its errors are seen too."""
    (tmp_path / "agents.yaml").write_text(
        "providers:\n"
        "  p: {protocol: openai, base_url: 'http://127.0.0.1:9', api_key_env: P_KEY, provider_patience_s: 0.2}\n"
        "agents: [{id: a, model: p/m}]\n"
    )
    done = command(tmp_path, *local("-", "--output", "results.jsonl"), given=GOOD, P_KEY=KEY)
    assert done.status == 1
    kept = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert b"llm_api_error" in b"".join(kept)
    assert KEY not in done.out + done.err
    assert KEY.encode() not in b"".join(kept)
