"""Servers on one PostgreSQL database: exactly one of them leads each job, also when one dies."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from batchray.store import DEFAULT_USER, Store
from tests.chaos.client import AGENTS, Client
from tests.chaos.judge import called_back, check_echoes
from tests.polling import until
from tests.postgres import Database
from tests.server.http_client import BATCHES, ask, create, n_done, results, status_of
from tests.server.live import LiveServer, live_server
from tests.server.receiver import receiver

LOOPBACK = {"BATCHRAY_CALLBACK_NETWORKS": '["127.0.0.0/8"]'}
QUICK = {"BATCHRAY_LEASE_S": "3"}


def checked(tmp_path: Path, url: str) -> None:
    with Store.open_for_reading(tmp_path, url) as store:
        assert store.integrity.check().problems == []


def test_a_job_of_a_killed_server_is_taken_over_and_its_callback_is_sent(tmp_path: Path, database: Database) -> None:
    url = database.new_url()
    given: dict[str, Any] = {"agents": AGENTS, **LOOPBACK, **QUICK, "BATCHRAY_DATABASE_URL": url}
    with receiver() as hook:
        client = Client(hook.url)
        with (
            live_server(tmp_path / "one", "--max-in-flight", "4", **given) as one,
            live_server(tmp_path / "two", **given) as two,
        ):
            assert client.post(one.url, 400)
            [job_id] = client.job_ids
            until(lambda: n_done(one, job_id) > 20)
            seen = {line["index"]: line for line in results(two.url, job_id)}
            one.kill()
            check_echoes(client, two.url, hook)
            lines = list(results(two.url, job_id))
            assert {index: lines[index] for index in seen} == seen  # a shown outcome never changes
            assert {line["attempts"] for line in lines} <= {1, 2}
            assert two.stop() == 0
            assert "Traceback" not in two.log
    checked(tmp_path, url)


def test_no_job_is_led_by_two_servers(tmp_path: Path, database: Database) -> None:
    url = database.new_url()
    given: dict[str, Any] = {"agents": AGENTS, **LOOPBACK, **QUICK, "BATCHRAY_DATABASE_URL": url}
    with receiver() as hook:
        client = Client(hook.url)
        with live_server(tmp_path / "one", **given) as one, live_server(tmp_path / "two", **given) as two:
            for n in range(8):
                assert client.post((one, two)[n % 2].url, 40)
            check_echoes(client, one.url, hook)
            for job_id in client.job_ids:
                assert {line["attempts"] for line in results(two.url, job_id)} == {1}
            assert sorted(called_back(hook)) == sorted(client.job_ids)  # each callback once, as long as no server dies
            assert len(set(_created_at_once((one, two), "key"))) == 1
            assert (one.stop(), two.stop()) == (0, 0)
    checked(tmp_path, url)


def _created_at_once(servers: Sequence[LiveServer], key: str) -> list[str]:
    """Send each server the same batch with the same Idempotency-Key at once; return the ids of the jobs."""
    body = {"requests": [{"agent_id": "echo", "input": "x" * 100_000}] * 20}  # in several pieces
    with ThreadPoolExecutor(len(servers)) as pool:
        created = [pool.submit(ask, server.url, BATCHES, body, Idempotency_Key=key) for server in servers]
        return [str(each.result()["id"]) for each in created]


def test_a_job_is_cancelled_through_another_server_than_its_leader(tmp_path: Path, database: Database) -> None:
    given: dict[str, Any] = {"agents": AGENTS, **QUICK, "BATCHRAY_DATABASE_URL": database.new_url()}
    with (
        live_server(tmp_path / "one", "--max-in-flight", "1", **given) as one,
        live_server(tmp_path / "two", **given) as two,
    ):
        client = Client()
        assert client.post(one.url, 2000)
        [job_id] = client.job_ids
        until(lambda: n_done(two, job_id) > 2)
        ask(two.url, f"{BATCHES}/{job_id}/cancel", method="PATCH")
        until(lambda: ask(one.url, f"{BATCHES}/{job_id}")["status"] == "cancelled")
        assert n_done(two, job_id) == 2000


def test_one_of_many_concurrent_retries_through_two_servers_succeeds(tmp_path: Path, database: Database) -> None:
    given: dict[str, Any] = {"agents": AGENTS, **QUICK, "BATCHRAY_DATABASE_URL": database.new_url()}
    with live_server(tmp_path / "one", **given) as one, live_server(tmp_path / "two", **given) as two:
        client = Client()
        assert client.post(one.url, 2000)
        [job_id] = client.job_ids
        ask(one.url, f"{BATCHES}/{job_id}/cancel", method="PATCH")
        before = until(lambda: ended(two, job_id))
        with ThreadPoolExecutor(8) as pool:
            urls = [server.url for server in (one, two)] * 4
            answers = list(pool.map(lambda url: status_of(url, f"{BATCHES}/{job_id}/retry", {}), urls))
        assert {200} <= {*answers} <= {200, 409}
        after = until(lambda: ended(one, job_id))
        assert before["metadata"]["request_counts"]["canceled"] > 0
        assert after["metadata"]["request_counts"]["succeeded"] == 2000
        assert "Traceback" not in one.log + two.log


def leaders(store: Store) -> set[str]:
    """Return the processes that lead a job now."""
    query = "SELECT leader FROM leases JOIN jobs USING (job) WHERE completed_at IS NULL AND started_at IS NOT NULL"
    with store.database.reading() as connection:
        now = store.database.backend.now(connection)
        return set(connection.exec_driver_sql(f"{query} AND until > {now}").scalars())


def test_servers_share_a_queue_and_take_turns_at_a_stateful_agent_also_after_a_kill(
    tmp_path: Path, database: Database
) -> None:
    url, agents = database.new_url(), tmp_path / "agents.yaml"
    friend = {"id": "friend", "model": "offline/scripted", "stateful": True, "script": [{"text": "A", "delay_s": 0.05}]}
    agents.write_text(json.dumps({"agents": [friend]}))
    given: dict[str, Any] = {"agents": agents, "BATCHRAY_MAX_RUNNING_JOBS": "1", **QUICK, "BATCHRAY_DATABASE_URL": url}
    with (
        live_server(tmp_path / "one", **given) as one,
        live_server(tmp_path / "two", **given) as two,
        Store.open_for_reading(tmp_path / "two", url) as store,
    ):
        requests = [{"agent_id": "friend", "input": f"text {n}"} for n in range(10)]
        job_ids = [create(one, requests)["id"] for _ in range(4)]
        until(lambda: len(leaders(store)) == 2)  # the jobs that have to wait at one server start at the other
        one.kill()
        until(lambda: all(ended(two, job_id) for job_id in job_ids))
        lines = {(job_id, line["index"]): line for job_id in job_ids for line in results(two.url, job_id)}
        conversation = [(place.job_id, place.index) for place in store.conversations.places(DEFAULT_USER, "friend")]
        assert two.stop() == 0
    assert sorted(conversation) == sorted(lines)
    assert {line["status"] for line in lines.values()} == {"succeeded"}
    n_read = [lines[place]["usage"]["prompt_tokens"] for place in conversation]
    assert all(before < after for before, after in itertools.pairwise(n_read))  # each continues from all before it
    checked(tmp_path, url)


def ended(server: LiveServer, job_id: str) -> dict[str, Any] | None:
    job: dict[str, Any] = ask(server.url, f"{BATCHES}/{job_id}")
    return job if job["completed_at"] else None


def test_a_database_that_restarts_in_the_middle_of_500_requests_loses_and_repeats_nothing(
    tmp_path: Path, database: Database
) -> None:
    url = database.new_url()
    given: dict[str, Any] = {"agents": AGENTS, **LOOPBACK, "BATCHRAY_DATABASE_URL": url}
    with receiver() as hook, live_server(tmp_path, "--max-in-flight", "4", **given) as server:
        client = Client(hook.url)
        assert client.post(server.url, 500)
        [job_id] = client.job_ids
        for share in (50, 250):
            until(lambda share=share: n_done(server, job_id) > share)  # type: ignore[misc]
            database.stop()
            paused = threading.Event()
            paused.wait(1.0)  # the length of the outage
            database.start()
        check_echoes(client, server.url, hook)
        assert {line["attempts"] for line in results(server.url, job_id)} == {1}
        assert server.stop() == 0
        assert "Traceback" not in server.log
    checked(tmp_path, url)
