"""PostgreSQL is restarted again and again while two servers run 5,000 requests."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchray.store import Store
from tests.chaos.client import AGENTS, Client
from tests.chaos.judge import all_ended, check_echoes
from tests.polling import until
from tests.postgres import Database
from tests.server.http_client import results
from tests.server.live import live_server
from tests.server.receiver import receiver

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(900)
def test_restarts_of_the_database_lose_and_repeat_no_request(
    tmp_path: Path, database: Database, report: Callable[..., None]
) -> None:
    url, rng = database.new_url(), random.Random(7)
    given: dict[str, Any] = {
        "agents": AGENTS,
        "BATCHRAY_DATABASE_URL": url,
        "BATCHRAY_CALLBACK_NETWORKS": '["127.0.0.0/8"]',
    }
    is_over, n_restarts = threading.Event(), 0

    def restart() -> None:
        nonlocal n_restarts
        while not is_over.wait(rng.uniform(1, 4)):
            database.restart()
            n_restarts += 1

    with (
        receiver() as hook,
        live_server(tmp_path / "one", "--max-in-flight", "4", **given) as one,
        live_server(tmp_path / "two", "--max-in-flight", "4", **given) as two,
    ):
        client = Client(hook.url)
        assert all(client.post(server.url, 1250) for server in (one, two) for _ in range(2))
        restarting = threading.Thread(target=restart)
        restarting.start()
        try:
            until(lambda: all_ended(one.url), 800)
        finally:
            is_over.set()
            restarting.join()
        check_echoes(client, one.url, hook)
        attempts = [line["attempts"] for job_id in client.job_ids for line in results(two.url, job_id)]
        assert len(attempts) == 5000
        assert (one.stop(), two.stop()) == (0, 0)
    assert n_restarts > 1
    report(requests=5000, restarts=n_restarts, attempts=sum(attempts), lost=0, twice=0)
    with Store.open_for_reading(tmp_path, url) as store:
        assert store.integrity.check().problems == []
