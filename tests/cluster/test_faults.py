"""The cost of a bad request, a dead lane or a dead driver, on real Ray with a provider on loopback."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

import batchray
from batchray import Agent, Result
from batchray.cli.main import cli
from tests.cluster import agents
from tests.cluster.processes import processes_named, run_cli
from tests.polling import until
from tests.processes import descendants, is_alive, name_of, named
from tests.provider_server import run_in_thread
from tests.timing import timed

BAD = (
    ("good", "[[status:500]]", ("llm_api_error", "server_error")),
    ("good", "[[stall]]", ("llm_api_error", "timeout")),
    ("good", "[[badjson]]", ("invalid_llm_response", "malformed_stream")),
    ("good", '[[tool:fail {"expression": "1"}]]', ("end_turn", None)),
    ("killer", "now", ("error", "worker_died")),
)
"""Agent, input, and stop reason and error type of each bad request."""


@pytest.mark.parametrize("placement", ["lane", pytest.param("process", marks=pytest.mark.full)])
@pytest.mark.parametrize(("n_requests", "n_in_flight"), [(300, 16), pytest.param(2000, 128, marks=pytest.mark.full)])
def test_five_bad_requests_cost_no_other_request(
    n_requests: int, n_in_flight: int, placement: str, options: dict[str, Any]
) -> None:
    bad = {n_requests * place // 10: each for place, each in enumerate(BAD, start=3)}
    with run_in_thread() as server:
        local = {
            "protocol": "openai",
            "base_url": server.base_url,
            "max_retries": 2,
            "timeouts": {"connect_s": 5, "idle_s": 1, "call_s": 20},
        }
        agent_list = [
            Agent(id="good", model="local/m", tools=[agents.fail], deadline_s=60),
            Agent(id="killer", run=agents.kill_own_process, placement=placement),
        ]
        requests = [{"agent_id": "good", "input": f"question {index}"} for index in range(n_requests)]
        for index, (agent_id, text, _) in bad.items():
            requests[index] = {"agent_id": agent_id, "input": text}
        job = batchray.run(requests, agent_list, providers={"local": local}, max_in_flight=n_in_flight, **options)
        n_calls = server.n_calls

    results = list(job.results("index"))
    assert job.status == "completed"
    assert [result.index for result in results] == list(range(n_requests))
    for index, (_, _, (stop_reason, error)) in bad.items():
        result = results[index]
        assert (str(result.stop_reason), result.error.type if result.error else None) == (stop_reason, error), result
        assert result.timing.duration_ns < 60e9
    others = [result for result in results if result.index not in bad]
    assert {str(result.status) for result in others} == {"succeeded"}
    raising, deadly = list(bad)[-2:]
    assert results[deadly].attempts == 3
    assert {result.attempts for result in others} == {1}
    # Requests on the same lane at that moment run exactly once more; each bad request runs three times.
    assert n_calls <= n_requests + 2 * len(BAD) + (n_in_flight if placement == "lane" else 0)
    assert tool_return(results[raising]) == ("error", "ValueError: cannot work with 1")


def tool_return(result: Result) -> tuple[str, str]:
    message = next(message for message in result.messages if message.message_type == "tool_return_message")
    return message.status, str(message.tool_return)


def lane_processes() -> list[psutil.Process]:
    """Return the lanes of this process's cluster."""
    return processes_named("ray::Lane")


@pytest.mark.parametrize(("n_kills", "n_in_flight"), [(2, 12), pytest.param(10, 32, marks=pytest.mark.full)])
def test_killed_lanes_lose_and_repeat_nothing(n_kills: int, n_in_flight: int, options: dict[str, Any]) -> None:
    options.pop("progress")
    rng = random.Random(11)
    n_requests = 5 * n_in_flight * n_kills
    requests = [{"agent_id": "wait", "input": "0.2"} for _ in range(n_requests)]
    job = batchray.submit(requests, [Agent(id="wait", run=agents.wait)], max_in_flight=n_in_flight, **options)
    slowest = 0.0
    for round_ in range(n_kills):
        until(lambda round_=round_: job.progress_now().done > 3 * n_in_flight * round_ or job.is_done)  # type: ignore[misc]
        until(lambda: bool(lane_processes()))
        rng.choice(lane_processes()).kill()
        killed, done = time.monotonic(), job.progress_now().done
        until(lambda done=done: job.progress_now().done > done + n_in_flight or job.is_done)  # type: ignore[misc]
        slowest = max(slowest, time.monotonic() - killed)
    record = job.wait(120)

    assert record.counts["succeeded"] == n_requests
    assert sorted(result.index for result in job.results()) == list(range(n_requests))
    assert slowest < 60  # new outcomes arrive after each death


def test_a_suspended_lane_that_continues_later_changes_no_outcome(options: dict[str, Any]) -> None:
    options.pop("progress")
    patient = Agent(id="wait", run=agents.wait, deadline_s=3)
    batchray.run([{"agent_id": "wait", "input": "0"}] * 8, [patient], progress=False, **options)
    until(lambda: bool(lane_processes()), 60)  # earlier tests may have killed some
    stopped = lane_processes()
    job = batchray.submit([{"agent_id": "wait", "input": "2"}] * 4, [patient], deadline_grace_s=1, **options)
    until(lambda: job.in_flight == 4)
    for lane in stopped:
        lane.suspend()
    record, results = job.wait(60), list(job.results("index"))
    assert {result.error.type for result in results if result.error} <= {"deadline_exceeded"}
    assert record.counts["succeeded"] < 4

    for lane in stopped:
        if is_alive(lane):
            lane.resume()
    again = batchray.run([{"agent_id": "wait", "input": "0"}] * 40, [patient], progress=False, **options)
    assert again.counts["succeeded"] == 40
    assert (job.record(), list(job.results("index"))) == (record, results)


def test_a_request_whose_process_hangs_ends_at_its_deadline(options: dict[str, Any], tmp_path: Path) -> None:
    options.pop("progress")
    alone = Agent(id="wait", run=agents.begin_and_wait, placement="process", num_cpus=0.5, deadline_s=5)
    requests = [{"agent_id": "wait", "input": str(tmp_path / "begun")}]
    job = batchray.submit(requests, [alone], deadline_grace_s=1, **options)
    until((tmp_path / "begun").exists)
    [process] = processes_named("ray::job-")
    process.suspend()
    try:
        [result] = list(job.results())
    finally:
        process.kill()
    assert result.error is not None
    assert (result.error.type, result.attempts) == ("deadline_exceeded", 1)


def test_the_import_of_an_agents_code_does_not_count_towards_a_deadline(options: dict[str, Any]) -> None:
    slow = Agent(id="slow", run="tests.cluster.slow_import:answer", deadline_s=1)
    alone = slow.model_copy(update={"id": "alone", "placement": "process", "num_cpus": 0.5})
    wait = Agent(id="wait", run=agents.wait, deadline_s=1)
    requests = [{"agent_id": agent_id, "input": "0.01"} for agent_id in ("slow", "alone", *["wait"] * 8)]
    job = batchray.run(requests, [slow, alone, wait], **options)
    assert [(str(result.status), result.attempts) for result in job.results()] == [("succeeded", 1)] * 10


@contextmanager
def run_until(directory: Path, n_done: int, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a directory's batch with the command line; yields driver and job once more than `n_done` items are done."""
    with run_cli("run", "requests.jsonl", "--agents", "agents.json", *options, cwd=directory) as driver:
        assert driver.stdout is not None
        job_id = driver.stdout.readline().strip()
        until(lambda: completed_work(directory, job_id) > n_done, 120)
        yield driver, job_id


def write_waiting_batch(directory: Path, n: int, seconds: float) -> None:
    agent = {"id": "wait", "run": "tests.cluster.agents:wait"}
    (directory / "agents.json").write_text(json.dumps({"agents": [agent]}))
    lines = [json.dumps({"agent_id": "wait", "input": str(seconds)}) for _ in range(n)]
    (directory / "requests.jsonl").write_text("\n".join(lines))


def completed_work(directory: Path, job_id: str) -> int:
    return batchray.attach(job_id, directory / ".batchray").record().done


def gone(processes: list[psutil.Process]) -> bool:
    return not any(map(is_alive, processes))


@pytest.fixture(scope="session")
def orphans() -> Iterator[list[psutil.Process]]:
    """Collect the processes that a killed driver left behind; all of them must have ended after the last test.

    Two of Ray's own agents notice the end of their node only after a minute, so the check comes after all tests.
    """
    processes: list[psutil.Process] = []
    yield processes
    until(lambda: gone(processes), 90)


def test_a_killed_driver_is_resumed_without_repeating_finished_items(
    ray_session: None, tmp_path: Path, orphans: list[psutil.Process]
) -> None:
    write_waiting_batch(tmp_path, 300, 0.1)
    with run_until(tmp_path, 60, "--max-in-flight", "16", "--lanes", "1", "--quiet") as (driver, job_id):
        orphans += descendants(driver.pid)
        workers = named(("ray::Lane", "ray::Job", "ray::IDLE", "raylet", "gcs_"), orphans)
        driver.kill()
    seen = {result.index: result for result in batchray.attach(job_id, tmp_path / ".batchray").results(wait=False)}
    until(lambda: gone(workers), 30)

    arguments = [job_id, "--executor", "local", "--output", "out.jsonl"]  # on Ray in test_steps.py
    with run_cli("resume", *arguments, cwd=tmp_path) as resumed:
        _, err = resumed.communicate(timeout=120)

    assert resumed.returncode == 0, err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(300))
    assert {line["status"] for line in lines} == {"succeeded"}
    for index, result in seen.items():
        assert lines[index] == json.loads(result.model_dump_json())
    assert Counter(line["attempts"] for line in lines)[1] >= 300 - 16


def test_an_interrupt_keeps_outcomes_says_how_to_resume_and_exits_130(ray_session: None, tmp_path: Path) -> None:
    write_waiting_batch(tmp_path, 3000, 0.2)
    with run_until(tmp_path, 20, "--max-in-flight", "16", "--lanes", "1") as (driver, job_id):
        family = descendants(driver.pid)
        driver.send_signal(signal.SIGINT)
        _, err = driver.communicate(timeout=60)

    assert driver.returncode == 130
    assert f"batchray resume {job_id}" in err
    assert "Traceback" not in err
    assert gone(family)
    record = batchray.attach(job_id, tmp_path / ".batchray").record()
    assert 20 < record.done < 3000
    assert record.status == "running"


def test_cancel_from_another_terminal_ends_the_job(ray_session: None, tmp_path: Path) -> None:
    write_waiting_batch(tmp_path, 2000, 0.5)
    with run_until(tmp_path, 8, "--max-in-flight", "8", "--executor", "local") as (driver, job_id):
        with run_cli("cancel", job_id, cwd=tmp_path) as cancel:
            assert cancel.wait(60) == 0
        _, err = driver.communicate(timeout=60)

    assert driver.returncode == 1, err
    record = batchray.attach(job_id, tmp_path / ".batchray").record()
    assert record.status == "cancelled"
    assert record.done == record.total == 2000


def test_a_cancel_from_another_terminal_outlives_the_driver(tmp_path: Path) -> None:
    write_waiting_batch(tmp_path, 200, 0.5)
    with run_until(tmp_path, 8, "--max-in-flight", "8", "--executor", "local") as (driver, job_id):
        driver.send_signal(signal.SIGSTOP)  # it receives no control request any more
        with run_cli("cancel", job_id, cwd=tmp_path) as cancel:
            assert cancel.wait(30) == 0
        driver.kill()
    done = completed_work(tmp_path, job_id)
    check_that_a_resume_cancels(tmp_path, job_id)
    assert batchray.attach(job_id, tmp_path / ".batchray").counts["succeeded"] == done


CANCELS_AND_DIES = """
import os
import batchray
from batchray import Agent
requests = [{"agent_id": "wait", "input": "60"}] * 20
job = batchray.submit(requests, [Agent(id="wait", run="tests.cluster.agents:wait")], executor="local")
print(job.id, flush=True)
job.cancel()
os.kill(os.getpid(), 9)
"""


def test_a_cancel_in_a_program_outlives_it(tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", CANCELS_AND_DIES]
    program = subprocess.run(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True, timeout=60)
    assert program.returncode == -signal.SIGKILL
    check_that_a_resume_cancels(tmp_path, program.stdout.strip())


def check_that_a_resume_cancels(directory: Path, job_id: str) -> None:
    with run_cli("resume", job_id, "--executor", "local", "--quiet", cwd=directory) as resumed:
        _, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 1, err
    record = batchray.attach(job_id, directory / ".batchray").record()
    assert (record.status, record.done) == ("cancelled", record.total)
    assert not list((directory / ".batchray" / "control").iterdir())


@timed
@pytest.mark.parametrize("name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.full)])
def test_a_dead_cluster_ends_the_run_with_an_error_that_names_the_resume_command(
    slack: float, name: str, ray_session: None, tmp_path: Path
) -> None:
    write_waiting_batch(tmp_path, 3000, 0.5)
    with run_until(tmp_path, 8, "--max-in-flight", "8", "--lanes", "1") as (driver, job_id):
        [victim] = [process for process in descendants(driver.pid) if name_of(process) == name]
        victim.kill()
        killed = time.monotonic()
        out, err = driver.communicate(timeout=120)
        assert time.monotonic() - killed < 25 * slack

    assert driver.returncode == 1
    assert f"batchray resume {job_id}" in err
    assert f"Ray is gone: its {'GCS' if name == 'gcs_server' else name} has died" in err
    assert "Traceback" not in err
    assert out == ""  # only the job's id, which has been read, and no output of Ray


def test_an_unreachable_cluster_is_one_error_message(tmp_path: Path) -> None:
    write_waiting_batch(tmp_path, 5, 0)
    with run_cli(
        "run", "requests.jsonl", "--agents", "agents.json", "--ray-address", "127.0.0.1:1", cwd=tmp_path
    ) as driver:
        out, err = driver.communicate(timeout=60)

    assert driver.returncode == 1
    assert "batchray: cannot use the cluster at 127.0.0.1:1" in err
    assert f"batchray resume {out.strip()}" in err


def test_status_distinguishes_running_paused_and_interrupted_jobs(tmp_path: Path) -> None:
    write_waiting_batch(tmp_path, 3000, 0.5)  # for longer than all commands take
    options = ("--max-in-flight", "4", "--executor", "local")
    with run_until(tmp_path, 4, *options) as (first, first_id):
        first.kill()
    with run_until(tmp_path, 4, *options) as (second, second_id):
        assert states(tmp_path) == {first_id: "interrupted", second_id: "running"}
        call_cli("pause", second_id, cwd=tmp_path)
        assert states(tmp_path) == {first_id: "interrupted", second_id: "paused"}
        call_cli("unpause", second_id, cwd=tmp_path)
        assert states(tmp_path)[second_id] == "running"
        second.terminate()
        _, err = second.communicate(timeout=60)

    assert second.returncode == 143
    assert f"batchray resume {second_id}" in err
    call_cli("cancel", first_id, cwd=tmp_path)  # no process runs this job
    assert states(tmp_path) == {first_id: "cancelled", second_id: "interrupted"}


def call_cli(*arguments: str, cwd: Path) -> str:
    """Run a command in this process, which is not the one that runs the job."""
    with chdir(cwd):
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def states(directory: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in call_cli("status", "--json", cwd=directory).splitlines()]
    return {line["id"]: line["state"] for line in lines}
