"""Compares what clients were told with what the server shows at the end, without batchray's own code."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.client import Client, RequestLog, WatchingClient
from tests.polling import until
from tests.provider_server import ProviderServer
from tests.server.http_client import BATCHES, ask, results
from tests.server.receiver import Receiver


def check_echoes(client: Client, url: str, hook: Receiver | None = None) -> None:
    """Check the batches that `Client.post` sent: each request is answered with its own text."""
    check_outcomes(url, client.log, lambda text: text, hook=hook)


def check_answers(
    client: WatchingClient, provider: ProviderServer, *, bad: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Check the batches of `questions`, and return figures for the report.

    `bad` are the custom ids of requests that cannot succeed.
    """
    check_outcomes(client.url, client.log, lambda custom_id: f"answer to {custom_id}", bad=bad)
    needed = client.log.n_calls_needed
    assert provider.n_calls >= needed
    return {"requests": client.log.n_requests, "amplification": round(provider.n_calls / needed, 3)}


def check_outcomes(
    url: str,
    log: RequestLog,
    answer_to: Callable[[str], str],
    *,
    bad: frozenset[str] = frozenset(),
    hook: Receiver | None = None,
    timeout_s: float = 60,
) -> None:
    """Wait until all jobs have ended, then compare them with the log.

    Every acknowledged batch is present and complete; every other one is absent or complete.  Every item has exactly
    one outcome with the right content, the same as every time before.  Every job's callback arrives.  `answer_to`
    gives the right content for a custom id; `bad` are the custom ids of requests that cannot succeed.
    """
    jobs = until(lambda: all_ended(url), timeout_s)
    found = {job["id"]: job for job in jobs}
    assert set(log.batches) <= set(found), "an acknowledged batch is lost"
    for job_id, job in found.items():
        lines = list(results(url, job_id))
        custom_ids = log.custom_ids_of(job_id, lines)
        assert [line["index"] for line in lines] == list(range(len(custom_ids))), f"{job_id}: lost or twice"
        assert [line["custom_id"] for line in lines] == custom_ids, f"{job_id}: not what was sent"
        assert [line for line in lines if not _is_right(line, answer_to, bad)] == []
        n_bad = len(bad.intersection(custom_ids))
        assert job["metadata"]["request_counts"]["succeeded"] == len(lines) - n_bad
        assert {index for shown_of, index in log.shown if shown_of == job_id} <= set(range(len(lines)))
        for line in lines:
            log.show(job_id, line)
    assert log.complaints == []
    if hook is not None:
        until(lambda: set(found) <= set(called_back(hook)), timeout_s)


def check_database(data_dir: Path) -> None:
    """Check a SQLite file with SQLite itself, and that no item has two outcomes."""
    connection = sqlite3.connect(data_dir / "batchray.db")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        twice = "SELECT job, idx FROM outcomes GROUP BY job, idx HAVING count(*) > 1"
        assert connection.execute(twice).fetchall() == []
    finally:
        connection.close()


def called_back(hook: Receiver) -> list[str]:
    """Return the job id of each callback."""
    return [json.loads(received.body)["job_id"] for received in hook.received]


def all_ended(url: str) -> list[dict[str, Any]] | None:
    """Return all jobs once all have ended; None before, and while the server cannot read its store."""
    try:
        jobs: list[dict[str, Any]] = ask(url, f"{BATCHES}?limit=1000")
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 503:
                raise
        return None
    return jobs if jobs and all(job["completed_at"] for job in jobs) else None


def _is_right(line: dict[str, Any], answer_to: Callable[[str], str], bad: frozenset[str]) -> bool:
    if line["custom_id"] in bad:
        return bool(line["status"] == "errored" and line["error"]["type"] == "worker_died")
    texts = [each["content"] for each in line["messages"] if each["message_type"] == "assistant_message"]
    return bool(line["status"] == "succeeded" and "".join(map(_flat, texts)) == answer_to(line["custom_id"]))


def _flat(text: Any) -> str:
    return text if isinstance(text, str) else "".join(part["text"] for part in text)
