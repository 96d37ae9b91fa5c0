"""The settings and the file of results that a resume takes over from the last run of its job."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import batchray
from batchray import Agent, AgentRequest
from batchray.config import AgentSet, Settings, bind_agents, chosen_settings, load_settings, with_earlier
from batchray.jobs.start import Output, output_of, start_again, submit_with
from batchray.store import Store


def test_settings_of_the_earlier_run_complete_those_of_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHRAY_LANES", "3")
    earlier = chosen_settings(load_settings(data_dir="there", max_in_flight=7, executor="local"))
    assert earlier == {"max_in_flight": 7, "executor": "local", "lanes": 3}
    monkeypatch.setenv("BATCHRAY_LANES", "5")
    now = with_earlier(load_settings(executor="ray", data_dir="here"), earlier)
    assert (now.max_in_flight, now.executor, now.lanes, now.data_dir) == (7, "ray", 5, Path("here"))
    assert chosen_settings(now) == {"max_in_flight": 7, "executor": "ray", "lanes": 5}


def test_settings_that_this_version_refuses_are_left_out() -> None:
    earlier = {"max_in_flight": -1, "executor": "cloud", "lanes": 2, "colour": "red"}
    assert with_earlier(Settings(), earlier) == Settings(lanes=2)


def interrupted(directory: Path) -> tuple[batchray.Job, threading.Event, AgentSet]:
    """Return a job that was stopped in its first request, what lets its requests end, and its agents."""
    may_end, has_begun = threading.Event(), threading.Event()

    def wait(request: AgentRequest) -> str:
        has_begun.set()
        assert may_end.wait(60)
        return "done"

    agents = bind_agents([Agent(id="a", run=wait)])
    settings = load_settings(data_dir=directory / "data", executor="local", max_in_flight=2, max_attempts=5)
    job = submit_with(
        settings,
        [{"agent_id": "a", "input": "x"}] * 3,
        agents,
        output=Output(directory / "out.jsonl", include_input=True),
    )
    assert has_begun.wait(60)
    job.stop()
    return job, may_end, agents


def test_a_resume_takes_over_the_settings_and_the_file_of_the_last_run(tmp_path: Path) -> None:
    job, may_end, agents = interrupted(tmp_path)
    may_end.set()
    again = start_again(load_settings(data_dir=tmp_path / "data", max_attempts=4), job.id, agents, is_retry=False)
    assert again.wait(60).counts["succeeded"] == 3
    assert output_of(again) == (tmp_path / "out.jsonl", True)
    with Store.open_for_reading(tmp_path / "data") as store:
        kept = store.jobs.run_options(job.id)
    # The executor was not chosen again: on Ray the function, which closes over an event, could not be sent.
    assert kept["settings"] == {"executor": "local", "max_in_flight": 2, "max_attempts": 4}


def test_an_interrupt_of_a_run_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: batchray.Job, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(batchray.Job, "wait", interrupt)
    may_end = threading.Event()
    agent = Agent(id="a", run=lambda request: str(may_end.wait(60)))
    options: dict[str, Any] = {"data_dir": tmp_path / "data", "executor": "local", "max_in_flight": 1}
    with pytest.raises(KeyboardInterrupt):
        batchray.run([{"agent_id": "a", "input": "x"}] * 3, [agent], progress=False, **options)
    may_end.set()
    [job] = batchray.jobs(tmp_path / "data")
    said = capsys.readouterr().err
    assert said.startswith(f"job {job.id}: interrupted with ")
    again = f"batchray.resume({job.id!r}, agents=agents, data_dir={str(tmp_path / 'data')!r})"  # a lambda is not stored
    assert said.endswith(f"to continue: {again}\n")
    assert job.status == "interrupted"


@pytest.mark.parametrize(("place", "n_warnings"), [("runtime_resources/working_dir_files/_ray_pkg_1/d", 1), ("d", 0)])
def test_a_data_directory_that_ray_deletes_is_warned_about(
    place: str, n_warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agents = bind_agents([Agent(id="a", run=lambda request: "x")])
    settings = load_settings(data_dir=tmp_path / place, executor="local")
    submit_with(settings, [{"agent_id": "a", "input": "x"}], agents).wait(60)
    assert (
        len([record for record in caplog.records if "which Ray deletes after the job" in record.message]) == n_warnings
    )
