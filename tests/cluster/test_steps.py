"""Runs of several steps continue after their last finished step, whichever process died."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import batchray
from batchray import Job, Result
from batchray.errors import StoreError
from batchray.store import Store
from tests.cluster.processes import processes_named, run_cli
from tests.cluster.tool_steps import N_STEPS, agent, asked, events
from tests.polling import until
from tests.processes import descendants, is_alive, named
from tests.provider_server import run_in_thread
from tests.sqlite_lock import locked

PLACES = {"lane": "ray::Lane", "process": "ray::job-"}  # an isolated process is named after its request
ON_EACH_PLACE = pytest.mark.parametrize("place", ["lane", pytest.param("process", marks=pytest.mark.full)])


def kill(place: str) -> None:
    for process in processes_named(PLACES[place]):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def the_result(job: Job) -> Result:
    job.wait(90)
    [result] = job.results()
    return result


@ON_EACH_PLACE
def test_a_crash_during_a_model_call_repeats_that_call_and_no_tool(
    place: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    with run_in_thread() as server:
        job = batchray.submit(asked(ledger, 1.0), **agent(server, placement=place), **_quiet(options))
        until(lambda: n_kept(options["data_dir"]) == 2 * (N_STEPS - 1) and server.n_calls == N_STEPS, 90)
        kill(place)
        result = the_result(job)
        n_calls = server.n_calls
    assert (str(result.status), result.usage.step_count) == ("succeeded", N_STEPS + 1)
    assert result.attempts == (
        2 if place == "process" else 1
    )  # on its lane it only waited, so it is not blamed for the crash
    assert n_calls == N_STEPS + 1 + 1
    assert (events(ledger, "begun"), events(ledger, "ended")) == (N_STEPS, N_STEPS)
    kinds = [message.message_type for message in result.messages]
    assert kinds == ["tool_call_message", "tool_return_message"] * N_STEPS + ["assistant_message"]


@ON_EACH_PLACE
def test_a_crash_while_a_tool_runs_repeats_no_model_call(place: Any, options: dict[str, Any], tmp_path: Path) -> None:
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    with run_in_thread() as server:
        requests = asked(ledger, wait_for=str(gate))
        job = batchray.submit(requests, **agent(server, placement=place), **_quiet(options))
        until(lambda: n_kept(options["data_dir"]) == 1 and events(ledger, "begun") == 1, 90)
        kill(place)
        until(lambda: events(ledger, "begun") == 2, 90)
        gate.touch()
        result = the_result(job)
        n_calls = server.n_calls
    assert (str(result.status), n_calls) == ("succeeded", N_STEPS + 1)
    assert (events(ledger, "begun"), events(ledger, "ended")) == (N_STEPS + 1, N_STEPS)


def test_a_step_of_idempotent_tools_runs_before_it_is_stored_and_at_most_once_more_after_a_crash(
    options: dict[str, Any], tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    with run_in_thread() as server:
        job = batchray.submit(asked(ledger, 0.5), **agent(server, idempotent=True), **_quiet(options))
        until(lambda: server.n_in_flight == 1)
        with locked(options["data_dir"]):
            until(lambda: events(ledger, "ended") == 1 and server.n_calls == 2)
            until(lambda: not server.n_in_flight)
            assert n_kept(options["data_dir"]) == 0
            kill("lane")
        result = the_result(job)
        n_calls = server.n_calls
    assert (str(result.status), result.usage.step_count) == ("succeeded", N_STEPS + 1)
    repeated = (events(ledger, "ended") - N_STEPS, n_calls - (N_STEPS + 1))
    # The driver had collected the whole step, or the model's reply alone, or nothing: it stores what it has.
    assert repeated in [(0, 1), (1, 1), (1, 2)]
    kinds = [message.message_type for message in result.messages]
    assert kinds == ["tool_call_message", "tool_return_message"] * N_STEPS + ["assistant_message"]


def test_tools_that_returned_next_to_a_crashing_one_are_not_run_again(options: dict[str, Any], tmp_path: Path) -> None:
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    calls = {"note": {"ledger": str(ledger)}, "die_after": {"wait_for": str(gate)}}
    text = " ".join(f"[[tool:{name} {json.dumps(arguments)}]]" for name, arguments in calls.items())
    with run_in_thread() as server:
        job = batchray.submit([{"agent_id": "a", "input": text}], **agent(server), **_quiet(options))
        until(lambda: n_kept(options["data_dir"]) == 2, 90)  # the model's reply, and the result of `note`
        gate.touch()
        result = the_result(job)
        n_calls = server.n_calls
    assert result.error is not None
    assert (result.error.type, result.attempts, n_calls) == ("worker_died", 3, 1)
    assert [message.message_type for message in result.messages] == ["tool_call_message"]
    assert result.usage.step_count == 1
    assert events(ledger, "begun") == 1
    assert n_kept(options["data_dir"]) == 0


def test_a_cancelled_job_leaves_no_run_behind(options: dict[str, Any], tmp_path: Path) -> None:
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    with run_in_thread() as server:
        job = batchray.submit(asked(ledger, wait_for=str(gate)), **agent(server), **_quiet(options))
        until(lambda: n_kept(options["data_dir"]) == 1 and events(ledger, "begun") == 1, 90)
        job.cancel()
        assert job.wait(30).status == "cancelled"
        gate.touch()
        until(lambda: events(ledger, "ended") == 1)  # a thread, which cannot be stopped
        again = batchray.run(asked(tmp_path / "other"), progress=False, **agent(server), **_quiet(options))
        assert again.counts["succeeded"] == 1
        assert server.n_calls == 1 + N_STEPS + 1
    assert n_kept(options["data_dir"]) == 0


def test_a_killed_driver_repeats_one_model_call_a_request_and_no_tool(ray_session: None, tmp_path: Path) -> None:
    n_requests, ledgers = 4, [tmp_path / f"ledger{i}" for i in range(4)]
    lines = [json.dumps(asked(ledger, 1.0)[0]) for ledger in ledgers]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines))
    tools = ["tests.cluster.tool_steps:note"]
    with run_in_thread() as server:
        providers = {"local": {"protocol": "openai", "base_url": server.base_url}}
        agent_list = {"providers": providers, "agents": [{"id": "a", "model": "local/m", "tools": tools}]}
        (tmp_path / "agents.json").write_text(json.dumps(agent_list))
        arguments = ["requests.jsonl", "--agents", "agents.json", "--lanes", "1", "--quiet"]
        with run_cli("run", *arguments, cwd=tmp_path) as driver:
            assert driver.stdout is not None
            job_id = driver.stdout.readline().strip()
            all_kept, data_dir = n_requests * 2 * (N_STEPS - 1), tmp_path / ".batchray"
            until(lambda: n_kept(data_dir) == all_kept and server.n_calls == n_requests * N_STEPS, 60)
            family = descendants(driver.pid)
            driver.kill()
        until(lambda: not any(map(is_alive, named("ray::Lane", family))), 30)
        with run_cli("resume", job_id, "--lanes", "1", "--output", "out.jsonl", cwd=tmp_path) as resumed:
            _, err = resumed.communicate(timeout=120)
        n_calls = server.n_calls
    assert resumed.returncode == 0, err
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [result["usage"]["step_count"] for result in results] == [N_STEPS + 1] * n_requests
    assert n_calls == n_requests * (N_STEPS + 1 + 1)
    assert [events(ledger, "ended") for ledger in ledgers] == [N_STEPS] * n_requests


def n_kept(data_dir: Path) -> int:
    """Return how many checkpoints the newest job has."""
    try:
        store = Store.open_for_reading(data_dir)
    except StoreError:  # not created yet
        return 0
    with store:
        newest = store.jobs.find(order="desc", limit=1)
        return sum(len(store.items.checkpoints(job, index)) for job in newest for index in range(job.total))


def _quiet(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "progress"}


@ON_EACH_PLACE
def test_a_store_that_is_locked_for_longer_than_a_deadline_costs_no_request(
    place: str, options: dict[str, Any], tmp_path: Path
) -> None:
    options.pop("progress")
    ledgers = [tmp_path / f"ledger-{index}" for index in range(2)]
    requests = [request for ledger in ledgers for request in asked(ledger, 0.4)]
    extra: dict[str, Any] = {"placement": place, **({"num_cpus": 0.25} if place == "process" else {})}
    with run_in_thread() as server:
        job = batchray.submit(requests, **agent(server, deadline_s=4, **extra), deadline_grace_s=1, **options)
        until(lambda: all(events(ledger, "ended") for ledger in ledgers))
        with locked(options["data_dir"]):
            time.sleep(8)  # longer than the deadline and its grace
        job.wait(90)
        assert [(str(result.status), result.attempts) for result in job.results()] == [("succeeded", 1)] * 2
        assert server.n_calls == 2 * (N_STEPS + 1)
