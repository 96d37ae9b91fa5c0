"""The Python API on the local executor: its options, what it refuses, and its async functions."""

from __future__ import annotations

import gc
import inspect
import threading
import traceback
import typing
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest

import batchray
from batchray import Agent, Settings, api
from batchray.batch.formats.options import InputOptions
from batchray.errors import ConfigError, JobInterruptedError, StoreError, UnknownJobError, UsageError
from batchray.schema import new_job_id
from batchray.store import Store

AGENT = Agent(id="a", model="offline/scripted", script=({"text": "yes"},))


def fail(request: batchray.AgentRequest) -> str:
    raise ValueError("no")


FAILING = Agent(id="a", run=fail)
REQUESTS = [{"agent_id": "a", "input": f"text {n}"} for n in range(3)]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"data_dir": tmp_path / "data", "executor": "local"}


def test_the_typed_options_are_the_fields_of_the_settings() -> None:
    hints = typing.get_type_hints(api.SettingsOptions)
    assert set(hints) == set(Settings.model_fields)
    assert Literal["ray", "local"] in typing.get_args(hints["executor"])
    assert set(typing.get_type_hints(api.ResumeOptions)) == {*hints, "providers"}
    rows = {each.name for each in fields(InputOptions)}
    assert set(typing.get_type_hints(api.SubmitOptions)) == {*hints, *rows, "providers", "callback_url", "reuse"}


@pytest.mark.parametrize("name", ["run", "arun", "submit", "resume", "aresume", "submit_resume", "retry", "aretry"])
def test_every_function_that_runs_a_job_has_typed_options(name: str) -> None:
    function = getattr(batchray, name)
    [last] = [each for each in inspect.signature(function).parameters.values() if each.kind is each.VAR_KEYWORD]
    assert last.annotation in {f"Unpack[{kind}]" for kind in ("SettingsOptions", "ResumeOptions", "SubmitOptions")}


@pytest.mark.parametrize("name", ["run", "submit", "resume", "submit_resume", "retry", "submit_retry"])
def test_a_typo_in_an_option_is_refused_with_a_suggestion(name: str, options: dict[str, Any]) -> None:
    first: Any = REQUESTS if name in ("run", "submit") else new_job_id()
    with pytest.raises(ConfigError, match="unknown key 'max_inflight'; did you mean 'max_in_flight'"):
        getattr(batchray, name)(first, [AGENT], max_inflight=3, **options)
    assert not Path(options["data_dir"]).exists()


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("run", "promt", "prompt"),
        ("submit", "agnet", "agent"),
        ("run", "progres", "progress"),
        ("retry", "provider", "providers"),
        ("run", "callback", "callback_url"),
        ("attach", "data_dirs", "data_dir"),
    ],
)
def test_a_typo_of_any_keyword_is_refused_with_the_one_that_was_meant(name: str, given: str, meant: str) -> None:
    first = (REQUESTS, [AGENT]) if name in ("run", "submit") else (new_job_id(),)
    with pytest.raises(ConfigError, match=f"^{name}: unknown key '{given}'; did you mean '{meant}'\\?$"):
        getattr(batchray, name)(*first, **{given: "x"})


# Untyped, because mypy refuses these calls too.
UNKNOWN: Any = "opnai"
MISSPELT: Any = {"modle": "m/n"}
MISSPELT_INPUT: Any = {"imput": "x"}
ONE_AGENT: Any = AGENT
NOTHING: Any = None
A_LIST: Any = ["p"]
BAD_CALLS: dict[str, tuple[Callable[..., Any], str]] = {
    "a misspelt key": (
        lambda **options: batchray.submit([{**REQUESTS[0], "imput": "x"}], [AGENT], **options),
        "requests[0].imput: unknown key",
    ),
    "an agent that does not exist": (
        lambda **options: batchray.submit(iter([{"agent_id": "b", "input": "x"}]), [AGENT], **options),
        "requests[0]: unknown agent 'b'",
    ),
    "a file that does not exist": (
        lambda **options: batchray.submit("nowhere.jsonl", [AGENT], **options),
        "nowhere.jsonl: cannot be read: No such file",
    ),
    "one request": (lambda **options: batchray.submit(REQUESTS[0], [AGENT], **options), "put the request into a list"),
    "one agent": (lambda **options: batchray.submit(REQUESTS, ONE_AGENT, **options), "agents is a list of agents"),
    "no agents": (lambda **options: batchray.submit(REQUESTS, NOTHING, **options), "not NoneType"),
    "a misspelt key of an agent": (
        lambda **options: batchray.submit(REQUESTS, [{"id": "a", "modle": "m/n"}], **options),
        "agents[0]: unknown key 'modle'; did you mean 'model'?",
    ),
    "a list of providers": (
        lambda **options: batchray.submit(REQUESTS, [AGENT], providers=A_LIST, **options),
        "providers is a mapping of names to providers, not a list",
    ),
    "a constructed agent": (lambda **_: Agent(id="a", **MISSPELT), "Agent: unknown key 'modle'; did you"),
    "an incomplete agent": (lambda **_: Agent(id="a"), "Agent: give exactly one of model and run"),
    "a constructed provider": (lambda **_: batchray.Provider(protocol=UNKNOWN), "Provider: protocol: Input should be"),
    "a constructed request": (
        lambda **_: batchray.AgentRequest(agent_id="a", **MISSPELT_INPUT),
        "imput: unknown key",
    ),
    "an incomplete request": (lambda **_: batchray.AgentRequest(agent_id="a"), "Must specify either"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_usage_error_is_one_sentence_with_a_short_traceback(name: str, options: dict[str, Any]) -> None:
    call, sentence = BAD_CALLS[name]
    with pytest.raises(UsageError) as caught:
        call(**options)
    error = caught.value
    assert sentence in str(error)
    assert "\n" not in str(error)
    assert (error.__cause__, error.__suppress_context__ or error.__context__ is None) == (None, True)
    assert len(traceback.extract_tb(error.__traceback__)) <= 4  # two of them are this test's


async def test_a_usage_error_of_async_code_is_as_short(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="imput: unknown key") as caught:
        await batchray.arun([{**REQUESTS[0], "imput": "x"}], [AGENT], **options)
    assert len(traceback.extract_tb(caught.value.__traceback__)) == 2


def test_a_job_is_retried_until_all_of_its_items_have_succeeded(options: dict[str, Any]) -> None:
    job = batchray.run(REQUESTS, [FAILING], progress=False, **options)
    assert job.counts["errored"] == 3
    again = batchray.retry(job.id, [AGENT], progress=False, **options)
    assert again.counts["succeeded"] == 3
    assert [result.text for result in again.results("index")] == ["yes"] * 3
    assert batchray.retry(job.id, progress=False, **options).counts["succeeded"] == 3


async def test_the_async_functions_run_resume_and_retry_a_job(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async def requests() -> AsyncIterator[dict[str, str]]:
        for request in REQUESTS:
            yield request

    job = await batchray.arun(requests(), [FAILING], **options)
    assert capsys.readouterr().err == ""
    job = await batchray.aretry(job.id, [AGENT], progress=True, **options)
    assert job.counts["succeeded"] == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("3 of 3 done, 0 failed")
    assert (await batchray.aresume(job.id, **options)).status == "completed"


async def test_arun_shows_its_progress_if_it_is_asked_to(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    await batchray.arun(REQUESTS, [AGENT], progress=True, **options)
    assert capsys.readouterr().err.splitlines()[-1].startswith("3 of 3 done")


def test_attach_finds_the_data_directory_as_submit_does(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHRAY_DATA_DIR", str(options.pop("data_dir")))
    job = batchray.run(REQUESTS, [AGENT], progress=False, **options)
    assert batchray.attach(job.id).counts["succeeded"] == 3
    assert batchray.attach(job.id, job.data_dir).counts["succeeded"] == 3
    with pytest.raises(UnknownJobError):
        batchray.attach(new_job_id())
    with pytest.raises(StoreError, match="no batchray data in nowhere"):
        batchray.attach(job.id, "nowhere")


def test_attach_finds_the_database_as_submit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHRAY_DATABASE_URL", "postgresql+psycopg://user@127.0.0.1:9/nothing?connect_timeout=1")
    with pytest.raises(StoreError, match="127"):
        batchray.attach(new_job_id())


def test_a_job_that_has_not_ended_is_not_retried(options: dict[str, Any]) -> None:
    slow = Agent(id="a", model="offline/scripted", script=({"text": "yes", "delay_s": 30},))
    job = batchray.submit(REQUESTS, [slow], **options)
    with pytest.raises(ConfigError, match="has not ended; `batchray resume` continues it"):
        batchray.submit_retry(job.id, **options)
    job.stop()


@pytest.fixture
def ended(options: dict[str, Any]) -> batchray.Job:
    """Return the handle of an ended job that no process runs."""
    job = batchray.run(REQUESTS, [AGENT], progress=False, **options)
    return batchray.attach(job.id, job.data_dir)


def test_the_text_of_a_handle_reads_nothing(tmp_path: Path) -> None:
    job_id = new_job_id()
    assert repr(batchray.Job(job_id, tmp_path / "nowhere")) == f"<Job {job_id}: {tmp_path}/nowhere>"


def test_a_handle_opens_one_reader_and_no_thread(ended: batchray.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    open_for_reading = Store.open_for_reading

    def counted(data_dir: Path, url: str | None = None, **options: bool) -> Store:
        opened.append(data_dir)
        return open_for_reading(data_dir, url, **options)

    monkeypatch.setattr(Store, "open_for_reading", counted)
    job = batchray.Job(ended.id, ended.data_dir)
    before = threading.active_count()
    assert (job.status, job.counts["succeeded"], job.is_done, job.progress.done) == ("completed", 3, True, 3)
    assert len(list(job.results())) == len(list(job.results("index"))) == 3
    assert job.failures() == []
    assert opened == [ended.data_dir]
    assert threading.active_count() <= before  # one of an earlier test may end meanwhile


def test_the_reader_of_a_handle_is_closed_with_it(ended: batchray.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Store] = []
    monkeypatch.setattr(Store, "close", lambda self: closed.append(self))
    job = batchray.Job(ended.id, ended.data_dir)
    assert job.status == "completed"
    del job
    gc.collect()
    assert len(closed) == 1


async def test_results_and_the_end_are_waited_for_in_async_code(options: dict[str, Any]) -> None:
    slow = Agent(id="a", model="offline/scripted", script=({"text": "yes", "delay_s": 0.2},))
    job = batchray.submit(REQUESTS, [slow], **options)
    other = batchray.attach(job.id, job.data_dir)
    assert [result.index async for result in job.aresults("index")] == [0, 1, 2]
    assert (await job.wait_async(30)).status == "completed"
    assert (await other.wait_async(30)).status == "completed"
    assert sorted([result.index async for result in other.aresults()]) == [0, 1, 2]
    assert [result async for result in other.aresults(failed=True)] == []


async def test_failed_results_of_an_ended_job_are_read_alone(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [{"agent_id": agent, "input": "?"} for agent in ("fails", "a", "a")]
    job = batchray.run(requests, [FAILING.model_copy(update={"id": "fails"}), AGENT], progress=False, **options)
    read, pages = type(job)._read_page, []

    def recorded(self: batchray.Job, query: Any) -> Any:
        pages.append(read(self, query))
        return pages[-1]

    monkeypatch.setattr(type(job), "_read_page", recorded)
    assert [result.index for result in job.results(failed=True)] == [0]
    assert [result.index async for result in job.aresults(failed=True)] == [0]
    assert [[stored.index for stored in page] for page in pages] == [[0], [], [0], []]


async def test_the_end_is_waited_for_only_as_long_as_asked(options: dict[str, Any]) -> None:
    slow = Agent(id="a", model="offline/scripted", script=({"text": "yes", "delay_s": 30},))
    job = batchray.submit(REQUESTS, [slow], **options)
    other = batchray.attach(job.id, job.data_dir)
    for handle in (job, other):
        with pytest.raises(TimeoutError):
            await handle.wait_async(0.05)
        with pytest.raises(TimeoutError):
            handle.wait(0.05)
    job.stop()
    for handle in (job, other):
        with pytest.raises(JobInterruptedError):
            await handle.wait_async()
        with pytest.raises(JobInterruptedError):
            handle.wait()


def test_a_handle_has_only_the_documented_public_names() -> None:
    public = {name for name in dir(batchray.Job) if not name.startswith("_")}
    assert public == {
        *("record", "status", "counts", "is_done", "is_started", "in_flight", "progress", "progress_now", "timing"),
        *(
            "is_paused",
            "paused_because",
            "waits",
            "newest_failure",
            "failures",
            "agents",
            "report",
            "brief_report",
            "plot",
            "result",
            "results",
            "aresults",
            "to_pandas",
            "to_arrow",
            "to_parquet",
            "export",
            "to_dataset",
            "wait",
            "wait_async",
        ),
        *("cancel", "pause", "unpause", "resize", "stop"),
    }


async def test_old_attributes_of_a_handle_warn_and_work(ended: batchray.Job, options: dict[str, Any]) -> None:
    with pytest.warns(DeprecationWarning, match=r"^Job\.ended is deprecated; use wait_async\(\)$"):
        assert (await ended.ended()).status == "completed"
    with pytest.warns(DeprecationWarning, match=r"Job\.live is deprecated; use progress"):
        assert ended.live().done == 3
    with pytest.warns(DeprecationWarning, match=r"Job\.error is deprecated"):
        assert ended.error() is None
    with pytest.warns(DeprecationWarning, match=r"Job\.interrupt is deprecated; use stop\(\)"):
        assert ended.interrupt() is None
    with pytest.warns(DeprecationWarning, match=r"Job\.when_over"):
        assert ended.when_over(print) is None  # this process does not run it
    job = batchray.submit(REQUESTS, [AGENT], **options)
    over = threading.Event()
    with pytest.warns(DeprecationWarning, match=r"Job\.when_over"):
        job.when_over(over.set)
    assert over.wait(30)
    with pytest.raises(AttributeError, match="'Job' object has no attribute 'nothing'"):
        job.nothing  # noqa: B018
