"""Processes of every kind are killed under a server: no outcome may be lost, doubled, changed or wrong.

The full numbers: python -m pytest tests/chaos -m chaos
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.chaos.client import WatchingClient, questions
from tests.chaos.judge import check_answers, check_database
from tests.chaos.supervised import SupervisedServer, check_no_process_is_left, random_process, start_server, with_client
from tests.polling import until
from tests.provider_server import run_in_thread

pytestmark = pytest.mark.cluster


class Storm(NamedTuple):
    """The number of requests, and of processes of each kind to kill meanwhile."""

    n_requests: int
    lane: int
    job_actor: int
    server: int
    raylet: int
    gcs: int
    latency_s: float
    n_in_flight: int
    is_full: bool


SHORT = Storm(400, lane=1, job_actor=1, server=1, raylet=1, gcs=1, latency_s=0.8, n_in_flight=16, is_full=False)
FULL = Storm(50_000, lane=200, job_actor=60, server=40, raylet=10, gcs=10, latency_s=1.0, n_in_flight=64, is_full=True)
# Seconds from a kill until new outcomes are shown.
LIMITS_S = {"lane": 5.0, "job_actor": 5.0, "server": 30.0, "raylet": 40.0, "gcs": 40.0}
NAMES = {"lane": "ray::Lane", "job_actor": "ray::JobActor", "raylet": "raylet", "gcs": "gcs_server"}


@pytest.mark.parametrize(
    "storm",
    [
        pytest.param(SHORT, id="short"),
        pytest.param(FULL, id="full", marks=[pytest.mark.chaos, pytest.mark.timeout(4 * 3600)]),
    ],
)
def test_no_request_is_lost_whichever_process_is_killed(
    storm: Storm, tmp_path: Path, report: Callable[..., None]
) -> None:
    rng = random.Random(5)
    with (
        run_in_thread(latency_s=storm.latency_s, keeps_bodies=False) as provider,
        tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as short,
        with_client(start_server(tmp_path, provider.base_url, storm.n_in_flight, "ray", RAY_TMPDIR=short)) as (
            server,
            client,
        ),
    ):
        for part in range(5):
            client.create(questions(storm.n_requests // 5, f"part{part}"))
        waits = kill_evenly(storm, rng, server, client)
        until(lambda: client.is_all_over, 120 + storm.n_requests)
        figures = check_answers(client, provider)
        assert server.stop() == 0
        check_database(server.data_dir)
    check_no_process_is_left(server.family, 90, with_agents=storm.is_full)
    report(**figures, **{f"{kind} back within s": max(found) for kind, found in waits.items()})
    for kind, found in waits.items():
        assert max(found) < (LIMITS_S[kind] if storm.is_full else 90), f"{kind}: {found}"


def kill_evenly(
    storm: Storm, rng: random.Random, server: SupervisedServer, client: WatchingClient
) -> dict[str, list[float]]:
    """Kill processes, spread evenly over the requests; returns the seconds until new outcomes, by kind."""
    kinds = [kind for kind in LIMITS_S for _ in range(getattr(storm, kind))]
    rng.shuffle(kinds)
    waits: dict[str, list[float]] = defaultdict(list)
    for n, kind in enumerate(kinds, start=1):
        due = n * storm.n_requests * 0.9 / (len(kinds) + 1)
        until(lambda due=due: client.n_done >= due, 600)  # type: ignore[misc]
        client.log_outcomes() if n % 10 == 1 else None
        killed_at = kill_one(kind, rng, server)
        # More than what was in flight, which other processes may still finish.
        wanted = min(client.count_done() + storm.n_in_flight, storm.n_requests)
        until(lambda wanted=wanted: client.n_done >= wanted, 120)  # type: ignore[misc]
        waits[kind].append(round(time.monotonic() - killed_at, 1))
    return waits


def kill_one(kind: str, rng: random.Random, server: SupervisedServer) -> float:
    """Wait for a process of a kind and kill it; returns when it was killed."""
    if kind == "server":
        killed_at = time.monotonic()
        server.kill()
        return killed_at
    victim: Any = random_process(rng, server, NAMES[kind])
    killed_at = time.monotonic()
    try:
        victim.kill()
    except psutil.NoSuchProcess:  # it has just ended for another reason
        return kill_one(kind, rng, server)
    return killed_at
