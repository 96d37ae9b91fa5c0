"""Requests that crash their process: three attempts, an error with the cause, and no cost for other requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

import batchray
from batchray import Agent
from tests.cluster import agents, dying
from tests.cluster.processes import run_cli
from tests.provider_server import run_in_thread

CAUSES = {
    "kill": "it was killed by a signal that leaves no trace",
    "crash": "it crashed: Segmentation fault in die (dying.py, line ",
    "exit": "it exited with status 3",
}


PLACES = ("sync function", "async function", "sync tool", "async tool")
CASES = [[(place, how) for place in PLACES] for how in CAUSES]
"""Where a process dies, and how."""


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([(PLACES[0], "kill"), (PLACES[1], "crash"), (PLACES[2], "exit"), (PLACES[3], "kill")], id="some"),
        *(pytest.param(cases, id=how, marks=pytest.mark.full) for how, cases in zip(CAUSES, CASES, strict=True)),
    ],
)
def test_a_request_that_crashes_its_worker_fails_after_three_attempts_and_costs_no_other(
    cases: list[tuple[str, str]], options: dict[str, Any]
) -> None:
    with run_in_thread() as server:
        deadly = [deadly_request(*case) for case in cases]
        agent_list = [
            Agent(id="sync", run=dying.sync_agent),
            Agent(id="async", run=dying.async_agent),
            Agent(id="tools", model="local/m", tools=[dying.die, dying.die_async]),
            Agent(id="wait", run=agents.wait),
        ]
        local = {"protocol": "openai", "base_url": server.base_url}
        requests = [*[{"agent_id": "tools", "input": f"question {index}"} for index in range(60)], *deadly]
        job = batchray.run(requests, agent_list, providers={"local": local}, max_in_flight=16, **options)

    results = list(job.results("index"))
    assert {str(result.status) for result in results[:60]} == {"succeeded"}
    for result, (_, how) in zip(results[60:], cases, strict=True):
        assert result.error is not None
        assert result.error.type == "worker_died", result
        assert result.attempts == 3
        assert CAUSES[how] in result.error.message
        assert "MiB of memory" in result.error.message


def deadly_request(place: str, how: str) -> dict[str, Any]:
    """Return a request that ends its process."""
    if place.endswith("function"):
        return {"agent_id": place.partition(" ")[0], "input": how}
    tool = "die" if place == "sync tool" else "die_async"
    return {"agent_id": "tools", "input": f'[[tool:{tool} {{"how": "{how}"}}]]'}


def test_a_request_whose_code_crashes_on_import_fails_after_three_attempts(
    options: dict[str, Any],
) -> None:
    agent_list = [Agent(id="deadly", run="tests.cluster.deadly_import:answer"), Agent(id="ask", model="local/m")]
    requests = [{"agent_id": agent_id, "input": "?"} for agent_id in ["ask"] * 20 + ["deadly"] * 2]
    with run_in_thread(latency_s=1) as server:
        local = {"protocol": "openai", "base_url": server.base_url}
        job = batchray.run(requests, agent_list, providers={"local": local}, **options)
    results = list(job.results("index"))
    assert {(str(result.status), result.attempts) for result in results[:20]} == {("succeeded", 1)}
    for deadly in results[20:]:
        assert deadly.error is not None
        assert (deadly.error.type, deadly.attempts) == ("worker_died", 3)
        assert CAUSES["exit"] in deadly.error.message


def test_a_request_that_blocks_its_lane_costs_no_other_request(ray_session: None, tmp_path: Path) -> None:
    agent_list = [
        {"id": "block", "run": "tests.cluster.agents:block_the_loop", "deadline_s": 9},
        {"id": "ask", "model": "local/m", "deadline_s": 9},
    ]
    requests = [{"agent_id": "ask", "input": "?"}] * 20 + [{"agent_id": "block", "input": "?"}]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, requests)))
    environment = {"BATCHRAY_LANE_SILENCE_S": "1", "BATCHRAY_DEADLINE_GRACE_S": "1"}
    arguments = ["requests.jsonl", "--agents", "agents.json", "--lanes", "1", "--output", "out.jsonl", "--quiet"]
    with run_in_thread(latency_s=3) as server:
        providers = {"local": {"protocol": "openai", "base_url": server.base_url}}
        (tmp_path / "agents.json").write_text(json.dumps({"providers": providers, "agents": agent_list}))
        with run_cli("run", *arguments, cwd=tmp_path, environment=environment) as driver:
            _, err = driver.communicate(timeout=150)
    *others, last = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {(each["status"], each["attempts"]) for each in others} == {("succeeded", 1)}, err
    assert (last["error"]["type"], last["attempts"]) == ("deadline_exceeded", 2)


@pytest.mark.usefixtures("memory_alone")
def test_a_request_that_uses_all_memory_fails_after_three_attempts(ray_session: None, tmp_path: Path) -> None:
    agents_file = {
        "agents": [
            {"id": "dying", "run": "tests.cluster.dying:sync_agent"},
            {"id": "wait", "run": "tests.cluster.agents:wait"},
        ]
    }
    (tmp_path / "agents.json").write_text(json.dumps(agents_file))
    requests = [{"agent_id": "wait", "input": "0.2"} for _ in range(40)] + [{"agent_id": "dying", "input": "allocate"}]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, requests)))
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + (3 << 30)) / memory.total
    arguments = ["requests.jsonl", "--agents", "agents.json", "--lanes", "1", "--output", "out.jsonl", "--quiet"]
    environment = {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    with run_cli("run", *arguments, cwd=tmp_path, environment=environment) as driver:
        _, err = driver.communicate(timeout=150)

    assert driver.returncode == 1, err
    *others, last = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {each["status"] for each in others} == {"succeeded"}
    assert (last["error"]["type"], last["attempts"]) == ("worker_died", 3), last
    assert "Ray's memory monitor killed it; it held " in last["error"]["message"]
