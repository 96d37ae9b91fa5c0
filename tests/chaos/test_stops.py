"""Processes are suspended and continue later: late replies change no outcome, and nothing is lost."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.chaos.client import questions
from tests.chaos.judge import check_answers, check_database
from tests.chaos.supervised import SupervisedServer, check_no_process_is_left, random_process, start_server, with_client
from tests.polling import until
from tests.provider_server import run_in_thread

pytestmark = pytest.mark.cluster

NAMES = {"lane": "ray::Lane", "job_actor": "ray::JobActor", "raylet": "raylet", "gcs": "gcs_server"}


@pytest.mark.parametrize(
    ("n_requests", "n_rounds", "seconds"),
    [
        pytest.param(300, 1, 1.0, id="short"),
        pytest.param(20_000, 10, 6.0, id="full", marks=[pytest.mark.chaos, pytest.mark.timeout(3600)]),
    ],
)
def test_suspended_processes_lose_nothing(
    n_requests: int, n_rounds: int, seconds: float, tmp_path: Path, report: Callable[..., None]
) -> None:
    rng = random.Random(7)
    with (
        run_in_thread(latency_s=0.5, keeps_bodies=False) as provider,
        tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as short,
        with_client(start_server(tmp_path, provider.base_url, 32, "ray", RAY_TMPDIR=short)) as (server, client),
    ):
        client.create(questions(n_requests, "held"))
        kinds = [*NAMES, "server"] * n_rounds
        rng.shuffle(kinds)
        for n, kind in enumerate(kinds, start=1):
            due = n * n_requests * 0.9 / (len(kinds) + 1)
            until(lambda due=due: client.n_done >= due, 600)  # type: ignore[misc]
            suspend_one(kind, rng, server, seconds)
            client.log_outcomes()
        until(lambda: client.is_all_over, 120 + n_requests)
        figures = check_answers(client, provider)
        assert server.stop() == 0
        check_database(server.data_dir)
    check_no_process_is_left(server.family, 90, with_agents=False)
    report(**figures, stops=len(kinds), seconds_each=seconds)


def suspend_one(kind: str, rng: random.Random, server: SupervisedServer, seconds: float) -> None:
    """Suspend one process of a kind for some seconds."""
    victim = psutil.Process(server.pid) if kind == "server" else random_process(rng, server, NAMES[kind])
    victim.suspend()
    time.sleep(seconds)  # the duration of the fault
    victim.resume()
