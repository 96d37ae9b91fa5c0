"""Processes that stand still for a while and go on: late answers change nothing, and nothing is lost."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.chaos.kit import (
    Supervised,
    check_database,
    check_no_process_is_left,
    judge,
    pick,
    questions,
    scene,
    start_server,
)
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
def test_what_stands_still_for_a_while_loses_nothing(
    n_requests: int, n_rounds: int, seconds: float, tmp_path: Path, report: Callable[..., None]
) -> None:
    rng = random.Random(7)
    with (
        run_in_thread(latency_s=0.5, keeps_bodies=False) as provider,
        tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as short,
        scene(start_server(tmp_path, provider.base_url, 32, "ray", RAY_TMPDIR=short)) as (server, client),
    ):
        client.create(questions(n_requests, "held"))
        kinds = [*NAMES, "server"] * n_rounds
        rng.shuffle(kinds)
        for n, kind in enumerate(kinds, start=1):
            due = n * n_requests * 0.9 / (len(kinds) + 1)
            until(lambda due=due: client.done >= due, 600)  # type: ignore[misc]
            hold(kind, rng, server, seconds)
            client.keep_what_is_shown()
        until(lambda: client.is_all_over, 120 + n_requests)
        figures = judge(client, provider)
        assert server.stop() == 0
        check_database(server.data_dir)
    check_no_process_is_left(server.family, 90, with_agents=False)
    report(**figures, stops=len(kinds), seconds_each=seconds)


def hold(kind: str, rng: random.Random, server: Supervised, seconds: float) -> None:
    """Stop one process of a kind for so long."""
    victim = psutil.Process(server.pid) if kind == "server" else pick(rng, server, NAMES[kind])
    victim.suspend()
    time.sleep(seconds)  # how long the fault lasts
    victim.resume()
