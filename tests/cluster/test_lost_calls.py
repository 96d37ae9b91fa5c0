"""Remote calls that are lost, or whose replies are: the run is not started twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.processes import run_cli
from tests.cluster.tool_steps import N_STEPS, asked, events
from tests.provider_server import run_in_thread

# Of each 100 calls that start a request: not sent, reply lost, failed on the way.  If the call of an isolated process
# fails on the way, Ray ends the process, and the next attempt continues from its checkpoints.
FAULTS = {"lane": (15, 15, 10), "process": (15, 25, 0)}
N_REQUESTS = {"lane": 24, "process": 5}


@pytest.mark.parametrize("placement", ["lane", pytest.param("process", marks=pytest.mark.full)])
def test_a_run_whose_remote_call_is_lost_is_not_run_twice(placement: str, ray_session: None, tmp_path: Path) -> None:
    n_requests = N_REQUESTS[placement]
    ledgers = [tmp_path / f"ledger-{index}" for index in range(n_requests)]
    lines = [json.dumps(asked(ledger, 0.1)[0]) for ledger in ledgers]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines))
    agent = {"id": "a", "model": "local/m", "tools": ["tests.cluster.tool_steps:note"]}
    place = {"placement": placement, **({"num_cpus": 0.25} if placement == "process" else {})}
    req, resp, in_flight = FAULTS[placement]
    fault = {"req_failure_prob": req, "resp_failure_prob": resp, "in_flight_failure_prob": in_flight}
    faults = {"CoreWorkerService.grpc_client.PushTask": {"num_failures": -1, **fault}}
    with run_in_thread() as server:
        providers = {"local": {"protocol": "openai", "base_url": server.base_url}}
        (tmp_path / "agents.json").write_text(json.dumps({"providers": providers, "agents": [{**agent, **place}]}))
        arguments = ["requests.jsonl", "--agents", "agents.json", "--lanes", "1", "--output", "out.jsonl", "--quiet"]
        variables = {"RAY_testing_rpc_failure": json.dumps(faults)}
        with run_cli("run", *arguments, cwd=tmp_path, environment=variables) as driver:
            _, err = driver.communicate(timeout=150)
        n_calls = server.n_calls
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(result["status"], result["attempts"]) for result in results] == [("succeeded", 1)] * n_requests, err
    assert [events(ledger, "begun") for ledger in ledgers] == [N_STEPS] * n_requests
    assert n_calls == n_requests * (N_STEPS + 1)
