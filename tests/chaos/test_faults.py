"""Deadly requests, terminations at random moments, and remote calls that get lost, under the judge's eyes."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.kit import (
    Client,
    check_database,
    check_no_process_is_left,
    judge,
    questions,
    scene,
    start_server,
)
from tests.polling import until
from tests.provider_server import run_in_thread

FULL = [pytest.mark.chaos, pytest.mark.timeout(3600)]
GRACE_S = 5
# Of each 100 remote calls of Ray's, 10 are never sent, the answers to 15 are lost, and 10 fail while they are on.
FAULTS = {"num_failures": -1, "req_failure_prob": 10, "resp_failure_prob": 15, "in_flight_failure_prob": 10}
# Of all calls; or of those that spawn requests alone, with which Ray itself starts and ends as ever.
ALL_CALLS, SPAWNING_CALLS = {"*": FAULTS}, {"CoreWorkerService.grpc_client.PushTask": FAULTS}


@pytest.mark.cluster
@pytest.mark.usefixtures("memory_alone")
@pytest.mark.parametrize(
    ("n_requests", "deadly"),
    [
        pytest.param(150, ("exit", "crash"), id="short"),
        pytest.param(1000, ("exit", "crash", "kill", "allocate", "exit") * 2, id="full", marks=FULL),
    ],
)
def test_deadly_requests_cost_nobody_else(
    n_requests: int, deadly: tuple[str, ...], tmp_path: Path, report: Callable[..., None]
) -> None:
    rng = random.Random(2)
    memory = psutil.virtual_memory()
    threshold = min((memory.total - memory.available + (4 << 30)) / memory.total, 0.95)
    with (
        run_in_thread(latency_s=1.0, keeps_bodies=False) as provider,
        tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as short,
        scene(
            start_server(
                *(tmp_path, provider.base_url, 64, "ray"),
                RAY_TMPDIR=short,
                RAY_memory_usage_threshold=f"{threshold:.3f}",
            )
        ) as (server, client),
    ):
        clean_s = run(client, questions(n_requests, "clean"))
        requests = questions(n_requests, "mixed")
        bad = frozenset(f"mixed-{index}" for index in rng.sample(range(n_requests), len(deadly)))
        for request, how in zip((each for each in requests if each["custom_id"] in bad), deadly, strict=True):
            request.update(agent_id="deadly", input=how)
        mixed_s = run(client, requests)
        figures = judge(client, provider, bad=bad)
        [_, mixed] = client.ledger.batches
        attempts = [result["attempts"] for result in client.results(mixed) if result["custom_id"] in bad]
        assert server.stop() == 0
        check_database(server.data_dir)
    check_no_process_is_left(server.family, 90, with_agents=False)
    report(**figures, attempts=attempts, clean_s=round(clean_s, 1), with_deadly_s=round(mixed_s, 1))
    assert set(attempts) == {3}
    if n_requests >= 1000:  # of fewer, the few processes that start are most of the time
        assert mixed_s < 2 * clean_s


@pytest.mark.parametrize("n_moments", [pytest.param(2, id="short"), pytest.param(20, id="full", marks=FULL)])
def test_a_termination_at_any_moment_loses_nothing(n_moments: int, tmp_path: Path, report: Callable[..., None]) -> None:
    rng = random.Random(4)
    environment = {"BATCHRAY_SHUTDOWN_GRACE_S": str(GRACE_S)}
    with (
        run_in_thread(latency_s=0.5, keeps_bodies=False) as provider,
        scene(start_server(tmp_path, provider.base_url, 32, "local", **environment)) as (server, client),
    ):
        moments = []
        for part in range(n_moments):
            client.create(questions(200, f"part{part}"))
            time.sleep(rng.uniform(0, 2))  # any moment is as good as another
            client.keep_what_is_shown()
            moments.append(server.terminate())
        until(lambda: client.is_all_over, 60 + 10 * n_moments)
        figures = judge(client, provider)
        assert server.stop() == 0
        check_database(server.data_dir)
    unready_s, ended_s = (max(times) for times in zip(*moments, strict=True))
    report(**figures, unready_within_s=round(unready_s, 2), ended_within_s=round(ended_s, 1))
    assert server.statuses == [0] * (n_moments + 1)
    slack = 1 if n_moments >= 20 else 10  # the short form shares its machine with other tests
    assert unready_s < 1 * slack
    assert ended_s < GRACE_S + 5 * slack


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("n_requests", "faults"),
    [
        pytest.param(200, SPAWNING_CALLS, id="short"),
        pytest.param(5000, ALL_CALLS, id="full", marks=FULL),
    ],
)
def test_lost_remote_calls_lose_no_request(
    n_requests: int, faults: dict[str, Any], tmp_path: Path, report: Callable[..., None]
) -> None:
    with (
        run_in_thread(latency_s=0.2, keeps_bodies=False) as provider,
        tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as short,
    ):
        seconds, figures = dict[str, float](), dict[str, Any]()
        is_compared = n_requests >= 5000  # of fewer, the start is most of the time
        clean: dict[str, dict[str, str]] = {"clean": {}} if is_compared else {}
        for name, variables in {**clean, "faulty": {"RAY_testing_rpc_failure": json.dumps(faults)}}.items():
            (tmp_path / name).mkdir()
            provider.clear()
            server = start_server(tmp_path / name, provider.base_url, 64, "ray", RAY_TMPDIR=short, **variables)
            with scene(server) as (server, client):
                seconds[name] = run(client, questions(n_requests, name), 1800)
                figures = judge(client, provider)
                server.stop()  # which Ray may disturb under these faults
                check_database(server.data_dir)
            check_no_process_is_left(server.family, 90, with_agents=False)
    report(**figures, seconds={name: round(took_s, 1) for name, took_s in seconds.items()})
    if is_compared:
        assert seconds["faulty"] < 4 * seconds["clean"]


def run(client: Client, requests: list[dict[str, Any]], timeout_s: float = 600) -> float:
    """Run a batch to its end, and return how long it took."""
    started = time.monotonic()
    client.create(requests)
    until(lambda: client.is_all_over, timeout_s)
    return time.monotonic() - started
