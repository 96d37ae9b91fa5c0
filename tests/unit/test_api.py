"""The Python API on the local executor: its options, what it refuses, and its async functions."""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

import batchray
from batchray import Agent, Settings, api
from batchray.errors import ConfigError, StoreError, UnknownJobError
from batchray.schema import new_job_id

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
    assert set(typing.get_type_hints(api.SubmitOptions)) == {*hints, "providers", "callback_url"}


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
    monkeypatch.setenv("BATCHRAY_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:9/nothing?connect_timeout=1")
    with pytest.raises(StoreError, match="127"):
        batchray.attach(new_job_id())


def test_a_job_that_has_not_ended_is_not_retried(options: dict[str, Any]) -> None:
    slow = Agent(id="a", model="offline/scripted", script=({"text": "yes", "delay_s": 30},))
    job = batchray.submit(REQUESTS, [slow], **options)
    with pytest.raises(ConfigError, match="has not ended; `batchray resume` continues it"):
        batchray.submit_retry(job.id, **options)
    job.stop()
