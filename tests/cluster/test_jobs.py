"""Jobs on real Ray: placements, control from other processes, and recovery."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import batchray
from batchray import Agent, AgentRequest
from batchray.errors import ClusterError, ConfigError, StoreError, UnknownJobError
from batchray.executors.blocking import BlockingBoard
from batchray.executors.ray import internals, job_actor
from batchray.executors.ray.connection import NAMESPACE
from batchray.executors.ray.job_actor import JobActorChannel, JobActorClient
from batchray.schema.letta_messages import ToolReturnMessage
from batchray.store import Store
from tests.cluster import agents
from tests.cluster.agents import ECHO, echoes
from tests.polling import until
from tests.processes import command_of, descendants, is_alive, listening_on, name_of, named
from tests.provider_server import run_in_thread

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_batch_comes_back_whole_and_in_order(options: dict[str, Any]) -> None:
    job = batchray.run(list(echoes(300)), [ECHO], **options)

    assert job.status == "completed"
    assert [result.text for result in job.results("index")] == [f"echo {i}" for i in range(300)]
    assert {result.attempts for result in job.results()} == {1}


def test_a_function_defined_in_a_notebook_runs_on_the_lanes(options: dict[str, Any]) -> None:
    prefix = "closure over "
    job = batchray.run(list(echoes(3)), [Agent(id="echo", run=lambda request: prefix + request.input)], **options)

    assert [result.text for result in job.results("index")] == [
        "closure over 0",
        "closure over 1",
        "closure over 2",
    ]


def test_results_stream_while_the_job_runs(options: dict[str, Any]) -> None:
    options.pop("progress")
    job = batchray.submit(
        [{"agent_id": "wait", "input": "0"}, {"agent_id": "wait", "input": "30"}],
        [Agent(id="wait", run=agents.wait)],
        **options,
    )
    first = next(job.results())

    assert first.index == 0
    assert not job.is_done
    job.cancel()
    assert job.wait(30).status == "cancelled"
    assert [str(result.status) for result in job.results("index")] == ["succeeded", "canceled"]


def test_exceptions_and_output_of_user_code_are_in_the_outcome(options: dict[str, Any]) -> None:
    class Panic(BaseException):
        pass

    async def panic(request: AgentRequest) -> None:
        print("on standard output")
        print("on standard error", file=sys.stderr)
        raise Panic("of a library")

    async def exit_in_a_task(request: AgentRequest) -> None:
        async def leave() -> None:
            sys.exit(3)

        await asyncio.gather(leave(), asyncio.Event().wait())

    def count(n: int):  # type: ignore[no-untyped-def]  # a lane knows only the names in its body
        print("counting")
        yield from range(n)

    script = [{"tool_calls": [{"name": "count", "arguments": {"n": 3}}]}, {"text": "done"}]
    batch = [
        Agent(id="alone", run=panic, placement="process"),
        Agent(id="panic", run=panic),
        Agent(id="exit", run=exit_in_a_task),
        Agent(id="count", model="offline/scripted", script=script, tools=[count]),
    ]
    job = batchray.run([{"agent_id": agent.id, "input": "?"} for agent in batch], batch, **options)

    *panicked, exited, counted = job.results("index")
    for result in panicked:
        assert (result.stdout, result.stderr) == ("on standard output\n", "on standard error\n")
        assert result.error is not None
        assert (result.error.type, result.error.message) == ("Panic", "of a library")
        assert f'File "{__file__}"' in (result.error.traceback or "")
    assert exited.error is not None
    assert (exited.error.type, exited.error.message) == ("SystemExit", "3")
    returned = next(message for message in counted.messages if isinstance(message, ToolReturnMessage))
    assert (returned.tool_return, returned.stdout) == ("[0,1,2]", ["counting\n"])
    assert {result.attempts for result in job.results()} == {1}


def test_lanes_are_kept_for_the_next_job(options: dict[str, Any]) -> None:
    def pids() -> set[str]:
        requests = [{"agent_id": "pid", "input": "?"} for _ in range(20)]
        job = batchray.run(requests, [Agent(id="pid", run=agents.pid)], **options)
        return {result.text for result in job.results()}

    assert len(pids()) == 2
    assert pids() == pids()


def test_process_placement_gives_each_request_a_process_and_module_level_clients_of_its_own(
    options: dict[str, Any],
) -> None:
    with run_in_thread() as server:
        requests = [{"agent_id": "ask", "input": server.base_url} for _ in range(3)]
        alone = Agent(id="ask", run="tests.cluster.module_client:ask", placement="process", num_cpus=1)
        job = batchray.run(requests, [alone], **options)

    results = list(job.results())
    assert [result.error for result in results] == [None] * 3
    assert len({result.text for result in results}) == 3  # two at a time, so the third could have had a used one


def test_sync_functions_on_a_lane_share_a_module_level_client(options: dict[str, Any]) -> None:
    with run_in_thread() as server:
        requests = [{"agent_id": "ask", "input": server.base_url} for _ in range(200)]
        job = batchray.run(requests, [Agent(id="ask", run="tests.cluster.module_client:ask_sync")], **options)

    results = list(job.results())
    assert [result.error for result in results] == [None] * 200
    assert len({result.text for result in results}) == 2  # the lanes


def test_a_request_that_blocks_its_lane_is_named_in_the_log_and_the_live_state(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options.pop("progress")
    blocker = Agent(id="blocker", run=agents.block_until_released)
    job = batchray.submit([{"agent_id": "blocker", "input": str(tmp_path / "released")}], [blocker], **options)
    seen: list[dict[str, Any]] = []

    def has_seen() -> bool:
        seen.extend(watched.snapshot().get("blocking", []))
        return bool(seen)

    try:
        until(lambda: job.in_flight > 0, 60)
        watched = batchray.find_job(job.id, wait_s=60)
        until(has_seen, 60)
    finally:
        (tmp_path / "released").touch()
    job.wait(60)
    blocking = seen[0]
    assert (blocking["index"], blocking["agent_id"]) == (0, "blocker")
    assert "agents.py, line " in blocking["where"]
    assert "agent 'blocker' blocks the event loop" in caplog.text


def test_lanes_have_the_drivers_cpu_priority_and_isolated_processes_a_lower_one(
    options: dict[str, Any],
) -> None:
    given: list[Agent] = [Agent(id=place, run=agents.niceness, placement=place) for place in ("lane", "process")]
    job = batchray.run([{"agent_id": agent.id, "input": "?"} for agent in given], given, **options)
    own = os.getpriority(os.PRIO_PROCESS, 0)

    on_lane, in_process = (int(result.text) for result in job.results("index"))
    assert on_lane == own
    assert in_process > own


def test_resources_that_no_node_has_are_refused_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="asks for 1 CPU, 3 GPU a request; no node of the cluster has that"):
        batchray.run(list(echoes(1)), [Agent(id="echo", run=agents.echo, placement="process", num_gpus=3)], **options)


def test_resources_are_checked_only_for_agents_of_the_batch_and_not_if_nodes_may_be_added(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    big = Agent(id="big", run=agents.echo, placement="process", num_gpus=3)
    job = batchray.run(list(echoes(2)), [Agent(id="echo", run=agents.echo), big], **options)
    assert job.counts["succeeded"] == 2

    monkeypatch.setattr(internals, "may_add_nodes", lambda: True)
    settings = {name: value for name, value in options.items() if name != "progress"}
    waiting = batchray.submit([{"agent_id": "big", "input": "x"}], [big], **settings)
    waiting.cancel()
    assert waiting.wait(60).status == "cancelled"
    assert "agent 'big' asks for 1 CPU, 3 GPU; its requests wait until the cluster adds a node" in caplog.text


def test_blocking_functions_run_at_once_on_a_lane(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    requests = [{"agent_id": "meet", "input": f"{tmp_path / 'met'} {index} 40"} for index in range(40)]
    job = batchray.run(requests, [Agent(id="meet", run=agents.meet, deadline_s=60)], **options)

    assert job.counts["succeeded"] == 40  # one after another, the first would wait for the others until its deadline


def test_an_async_generator_and_a_ray_dataset_are_batches(options: dict[str, Any]) -> None:
    async def rows() -> AsyncIterator[dict[str, Any]]:
        for request in echoes(5):
            yield request

    job = batchray.run(rows(), [ECHO], **options)
    assert job.counts["succeeded"] == 5

    dataset = ray.data.from_items(list(echoes(7)))
    job = batchray.run(dataset, [ECHO], **options)
    assert sorted(result.text for result in job.results()) == [f"echo {i}" for i in range(7)]


def test_the_rows_of_a_ray_dataset_come_back_in_one(options: dict[str, Any]) -> None:
    rows = ray.data.from_items([{"question": f"text {n}", "level": n} for n in range(5)])
    job = batchray.run(rows, [ECHO], agent="echo", input_column="question", **options)
    made = sorted(job.to_dataset().take_all(), key=lambda row: row["index"])
    assert [(row["question"], row["level"], row["text"]) for row in made] == [
        (f"text {n}", n, f"echo text {n}") for n in range(5)
    ]
    assert all(row["input"] == row["question"] for row in made)


async def test_arun_and_run_work_inside_a_running_loop(options: dict[str, Any]) -> None:
    assert batchray.run(list(echoes(3)), [ECHO], **options).counts["succeeded"] == 3
    options.pop("progress")
    assert (await batchray.arun(list(echoes(3)), [ECHO], **options)).counts["succeeded"] == 3


async def test_a_cancelled_arun_leaves_the_job_for_a_resume(options: dict[str, Any]) -> None:
    options.pop("progress")
    waiting = [{"agent_id": "wait", "input": seconds} for seconds in ("0", "60")]
    task = asyncio.create_task(batchray.arun(waiting, [Agent(id="wait", run=agents.wait)], **options))

    def first_is_done() -> bool:
        try:
            with Store.open_for_reading(options["data_dir"]) as store:
                return any(job.done for job in store.jobs.find())
        except StoreError:  # not created yet
            return False

    await asyncio.to_thread(until, first_is_done)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with Store.open_for_reading(options["data_dir"]) as store:
        [record] = store.jobs.find()
    assert (record.status, record.done) == ("running", 1)


def test_a_job_is_watched_and_steered_from_another_process(options: dict[str, Any]) -> None:
    options.pop("progress")
    requests = [
        {"agent_id": "wait", "input": "0.2"} for _ in range(4000)
    ]  # more than can run before the control requests
    job = batchray.submit(requests, [Agent(id="wait", run=agents.wait)], max_in_flight=8, **options)
    until(lambda: job.in_flight > 0, 60)  # Ray has started; asking for its address earlier would start another cluster
    script = f"""
import time, batchray
found = batchray.find_job({job.id!r}, {ray.get_runtime_context().gcs_address!r})
found.pause()
while not (state := found.snapshot()).get("is_paused") or state["n_in_flight"]:
    time.sleep(0.05)
done = found.progress.done
found.resize(64)
found.unpause()
while (state := found.snapshot())["max_in_flight"] != 64 or state["is_paused"]:
    time.sleep(0.05)
found.cancel()
print(done, found.progress.total)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)

    assert ran.returncode == 0, ran.stderr
    done, total = map(int, ran.stdout.split()[-2:])
    assert 0 < done < total == 4000
    assert job.wait(30).status == "cancelled"


FIND_BY_ITSELF = """
import ray, sys
import batchray

try:
    batchray.find_job("job-1", wait_s=0)
except batchray.errors.ClusterError as error:
    print(error, ray.is_initialized())
job = batchray.submit(
    [{"agent_id": "a", "input": "?"}],
    [{"id": "a", "model": "offline/scripted", "script": [{"text": "done", "delay_s": 60}]}],
    data_dir=sys.argv[1], lanes=1, num_cpus=1,
)
found = batchray.find_job(job.id, wait_s=60)
print(found.id == job.id)
found.cancel()
print(job.wait().status)
"""


def test_a_look_for_a_job_starts_no_cluster_and_waits_for_the_one_that_its_process_is_starting(
    ray_session: None, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", FIND_BY_ITSELF, str(tmp_path / "data")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ran.stdout.splitlines() == [
        "this process is not connected to a Ray cluster; pass `ray_address` or set RAY_ADDRESS False",
        "True",
        "cancelled",
    ], ran.stderr


def test_a_dataset_made_without_a_cluster_starts_one_on_loopback(ray_session: None, tmp_path: Path) -> None:
    job = batchray.run(list(echoes(3)), [ECHO], data_dir=tmp_path / "data", progress=False, executor="local")
    script = f"""
import batchray
from tests.processes import descendants, is_alive, listening_on
print(batchray.attach({job.id!r}, data_dir={str(tmp_path / "data")!r}).to_dataset().count())
print(*set().union(*(listening_on(process) for process in descendants() if is_alive(process))))
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment)
    assert not ran.returncode, ran.stderr
    count, addresses = ran.stdout.splitlines()
    assert count == "3"
    assert {"127.0.0.1"} <= set(addresses.split()) <= LOOPBACK


def test_the_handle_of_another_process_is_called_through_remote_too_and_says_that_its_job_is_over(
    options: dict[str, Any],
) -> None:
    options.pop("progress")
    requests = [{"agent_id": "wait", "input": "60"} for _ in range(4)]
    job = batchray.submit(requests, [Agent(id="wait", run=agents.wait)], **options)
    until(lambda: job.in_flight > 0, 60)
    found = batchray.find_job(job.id, wait_s=60)
    until(lambda: found.snapshot() != {})
    with pytest.warns(DeprecationWarning, match=r"snapshot\.remote\(\) is deprecated; call \.snapshot\(\)"):
        state = ray.get(found.snapshot.remote())
    assert state["id"] == job.id
    with pytest.warns(DeprecationWarning, match=r"pause\.remote"):
        ray.get(found.pause.remote())
    until(lambda: found.snapshot()["is_paused"])
    with pytest.warns(DeprecationWarning, match=r"resume is deprecated; use \.unpause"):
        unpause = found.resume
    unpause()
    until(lambda: not found.snapshot()["is_paused"])
    with pytest.raises(ConfigError, match="max_in_flight >= 1"):
        found.resize(0)
    found.cancel()
    job.wait(30)

    def is_over() -> bool:
        try:
            found.snapshot()
        except UnknownJobError:
            return True
        return False

    until(is_over)


def test_jobs_of_a_driver_share_an_actor_that_forgets_them_and_knows_them_again_after_its_death(
    options: dict[str, Any],
) -> None:
    options.pop("progress")
    requests = [{"agent_id": "wait", "input": "60"} for _ in range(2)]
    jobs = [batchray.submit(requests, [Agent(id="wait", run=agents.wait)], **options) for _ in range(2)]
    first, second = (batchray.find_job(job.id, wait_s=60) for job in jobs)
    first.pause()
    until(lambda: first.snapshot().get("is_paused"))
    assert not second.snapshot()["is_paused"]

    [actor] = named("ray::JobActor", descendants())
    actor.kill()
    until(lambda: batchray.find_job(jobs[1].id, wait_s=60).snapshot() != {}, 60)
    [restarted] = named("ray::JobActor", descendants())
    assert restarted.pid != actor.pid

    batchray.find_job(jobs[0].id).cancel()
    assert jobs[0].wait(30).status == "cancelled"
    with pytest.raises(UnknownJobError):
        until(lambda: first.snapshot() is None)
    assert batchray.find_job(jobs[1].id, wait_s=0).snapshot()["id"] == jobs[1].id
    jobs[1].cancel()
    jobs[1].wait(30)


class SilentActor:
    """The job actor of a driver that is starting."""

    def has(self, job_id: str) -> None:
        """Give no answer."""
        threading.Event().wait()


def test_a_driver_that_does_not_answer_hides_no_job_of_another(options: dict[str, Any]) -> None:
    options.pop("progress")
    job = batchray.submit([{"agent_id": "wait", "input": "60"}], [Agent(id="wait", run=agents.wait)], **options)
    until(lambda: job.in_flight > 0, 60)
    actor: Any = ray.remote(SilentActor).options(name=f"{job_actor._NAMES}silent", namespace=NAMESPACE, num_cpus=0)
    silent = actor.remote()
    try:
        assert batchray.find_job(job.id, timeout_s=0.2, wait_s=60).id == job.id
        with pytest.raises(ClusterError, match="1 of this cluster's drivers did not answer within"):
            batchray.find_job("job-1", timeout_s=0.2, wait_s=0)
    finally:
        ray.kill(silent)
        job.cancel()
        job.wait(30)


async def test_an_executor_that_takes_a_living_cluster_for_lost_leaves_no_copy_of_its_jobs(
    options: dict[str, Any],
) -> None:
    await batchray.arun(list(echoes(1)), [ECHO], **options)  # the cluster is there
    has_cluster = True
    first, second = JobActorClient(lambda: has_cluster, BlockingBoard()), JobActorClient(lambda: True, BlockingBoard())
    before = JobActorChannel("job-1", first)
    while await before.update({"leader": "first"}) is None:
        continue
    has_cluster = False
    before.close()
    first.close()
    after = JobActorChannel("job-1", second)
    while await after.update({"leader": "second"}) is None:
        continue
    await asyncio.to_thread(until, lambda: first.name not in job_actor.actor_names())
    assert (await asyncio.to_thread(batchray.find_job, "job-1")).snapshot() == {"leader": "second"}

    second._actor = None  # as after an answer that did not come
    after.close()
    await asyncio.to_thread(until, lambda: not is_known("job-1"))
    second.close()
    await asyncio.to_thread(until, lambda: second.name not in job_actor.actor_names())


def is_known(job_id: str) -> bool:
    try:
        batchray.find_job(job_id, wait_s=0)
    except UnknownJobError:
        return False
    return True


def test_a_job_that_is_over_before_its_actor_is_there_leaves_none_behind(options: dict[str, Any]) -> None:
    for _ in range(3):
        job = batchray.run(list(echoes(1)), [ECHO], min_watched_items=1, **options)
        until(lambda job_id=job.id: not is_known(job_id))  # type: ignore[misc]


def test_nothing_of_ours_listens_beyond_loopback(options: dict[str, Any]) -> None:
    batchray.run(list(echoes(1)), [ECHO], **options)
    ours = [psutil.Process(), *descendants()]
    addresses = {name_of(process): listening_on(process) for process in ours if is_alive(process)}

    assert len(addresses) > 3  # driver, GCS, raylet, lanes
    assert set().union(*addresses.values())
    assert set().union(*addresses.values()) <= LOOPBACK


def test_an_own_cluster_starts_no_unneeded_process(options: dict[str, Any]) -> None:
    batchray.run(list(echoes(1)), [ECHO], **options)
    commands = [" ".join(command_of(process)) for process in descendants()]
    assert [command for command in commands if "/gcs_server" in command]
    helper_scripts = ("/monitor.py", "/log_monitor.py", "/dashboard.py")
    assert [command for command in commands if any(each in command for each in helper_scripts)] == []


def test_keys_reach_the_lanes_but_no_file_of_the_job(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KEY", "sk-very-secret-4711")
    with run_in_thread() as server:
        providers = {"local": {"protocol": "openai", "base_url": server.base_url, "api_key_env": "LOCAL_KEY"}}
        requests = [{"agent_id": "a", "input": "hello"}, {"agent_id": "a", "input": "[[status:401]]"}]
        job = batchray.run(requests, [Agent(id="a", model="local/m")], providers=providers, **options)

        assert {call.authorization for call in server.calls} == {"Bearer sk-very-secret-4711"}
    assert job.counts == {"succeeded": 1, "errored": 1, "canceled": 0, "expired": 0}
    kept = [file.read_bytes() for file in Path(options["data_dir"]).rglob("*") if file.is_file()]
    logged = [file.read_bytes() for file in Path(os.environ["RAY_TMPDIR"]).rglob("*") if file.is_file()]
    assert not any(b"very-secret" in content for content in [*kept, *logged])


def test_one_request_is_one_remote_call(options: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "calls"

    def note(request: AgentRequest) -> str:
        with log.open("a") as file:
            file.write(f"{request.input}\n")
        return "noted"

    batchray.run(list(echoes(50)), [Agent(id="echo", run=note)], **options)

    assert sorted(log.read_text().split(), key=int) == [str(index) for index in range(50)]
