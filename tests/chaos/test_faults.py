"""Requests that crash their worker, terminations at random moments, and remote calls that are lost."""

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

from tests.chaos.client import WatchingClient, questions
from tests.chaos.judge import check_answers, check_database
from tests.chaos.supervised import check_no_process_is_left, start_server, with_client
from tests.polling import until
from tests.provider_server import run_in_thread

SHORT = pytest.mark.full  # tests/cluster and tests/server try the same claims by default
FULL = [pytest.mark.chaos, pytest.mark.timeout(3600)]
GRACE_S = 5
# Of each 100 remote calls of Ray, 10 are never sent, 15 lose their reply, and 10 fail on the way.
FAULTS = {"num_failures": -1, "req_failure_prob": 10, "resp_failure_prob": 15, "in_flight_failure_prob": 10}
# All calls, or only those that start tasks, so that Ray itself can start and end.
ALL_CALLS, SPAWNING_CALLS = {"*": FAULTS}, {"CoreWorkerService.grpc_client.PushTask": FAULTS}


@pytest.mark.cluster
@pytest.mark.usefixtures("memory_alone")
@pytest.mark.parametrize(
    ("n_requests", "deadly"),
    [
        pytest.param(150, ("exit", "crash"), id="short", marks=SHORT),
        pytest.param(1000, ("exit", "crash", "kill", "allocate", "exit") * 2, id="full", marks=FULL),
    ],
)
def test_requests_that_crash_their_worker_cost_no_other_request(
    n_requests: int, deadly: tuple[str, ...], tmp_path: Path, report: Callable[..., None]
) -> None:
    rng = random.Random(2)
    memory = psutil.virtual_memory()
    threshold = min((memory.total - memory.available + (4 << 30)) / memory.total, 0.95)
    with (
        run_in_thread(latency_s=1.0, keeps_bodies=False) as provider,
        tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as short,
        with_client(
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
        figures = check_answers(client, provider, bad=bad)
        [_, mixed] = client.log.batches
        attempts = [result["attempts"] for result in client.results(mixed) if result["custom_id"] in bad]
        assert server.stop() == 0
        check_database(server.data_dir)
    check_no_process_is_left(server.family, 90, with_agents=False)
    report(**figures, attempts=attempts, clean_s=round(clean_s, 1), with_deadly_s=round(mixed_s, 1))
    assert set(attempts) == {3}
    if n_requests >= 1000:  # with fewer, most of the time is the start of processes
        assert mixed_s < 2 * clean_s


@pytest.mark.parametrize(
    "n_moments", [pytest.param(2, id="short", marks=SHORT), pytest.param(20, id="full", marks=FULL)]
)
def test_a_termination_at_any_moment_loses_nothing(n_moments: int, tmp_path: Path, report: Callable[..., None]) -> None:
    rng = random.Random(4)
    environment = {"BATCHRAY_SHUTDOWN_GRACE_S": str(GRACE_S)}
    with (
        run_in_thread(latency_s=0.5, keeps_bodies=False) as provider,
        with_client(start_server(tmp_path, provider.base_url, 32, "local", **environment)) as (server, client),
    ):
        moments = []
        for part in range(n_moments):
            client.create(questions(200, f"part{part}"))
            time.sleep(rng.uniform(0, 2))  # a random moment
            client.log_outcomes()
            moments.append(server.terminate())
        until(lambda: client.is_all_over, 60 + 10 * n_moments)
        figures = check_answers(client, provider)
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
        pytest.param(200, SPAWNING_CALLS, id="short", marks=SHORT),
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
        is_compared = n_requests >= 5000  # with fewer, most of the time is the start
        clean: dict[str, dict[str, str]] = {"clean": {}} if is_compared else {}
        for name, variables in {**clean, "faulty": {"RAY_testing_rpc_failure": json.dumps(faults)}}.items():
            (tmp_path / name).mkdir()
            provider.clear()
            server = start_server(tmp_path / name, provider.base_url, 64, "ray", RAY_TMPDIR=short, **variables)
            with with_client(server) as (server, client):
                seconds[name] = run(client, questions(n_requests, name), 1800)
                figures = check_answers(client, provider)
                server.stop()  # its status is not checked: these faults may disturb the end of Ray
                check_database(server.data_dir)
            check_no_process_is_left(server.family, 90, with_agents=False)
    report(**figures, seconds={name: round(took_s, 1) for name, took_s in seconds.items()})
    if is_compared:
        assert seconds["faulty"] < 4 * seconds["clean"]


def run(client: WatchingClient, requests: list[dict[str, Any]], timeout_s: float = 600) -> float:
    """Run a batch until it ends, and return the seconds that it took."""
    started = time.monotonic()
    client.create(requests)
    until(lambda: client.is_all_over, timeout_s)
    return time.monotonic() - started
