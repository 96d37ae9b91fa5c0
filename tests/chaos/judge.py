"""What a client knows of its batches, against what a server says in the end; nothing here is batchray's own code."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.polling import until
from tests.server.http_client import BATCHES, CONNECTION_ERRORS, ask, results
from tests.server.receiver import Receiver

AGENTS = Path(__file__).parent / "agents.yaml"


@dataclass
class Ledger:
    """What was acknowledged under which id and what got no answer, as custom ids; and what a client was shown since.

    `n_calls_needed` is how many calls of a model all that was acknowledged takes, where each is made once.
    """

    batches: dict[str, list[str]] = field(default_factory=dict)
    unanswered: list[list[str]] = field(default_factory=list)
    n_calls_needed: int = 0
    shown: dict[tuple[str, int], str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    @property
    def n_requests(self) -> int:
        return sum(map(len, self.batches.values()))

    def show(self, job_id: str, result: dict[str, Any]) -> None:
        """Write down an outcome, which may neither change nor disappear from now on."""
        shown = json.dumps(result, sort_keys=True)
        if self.shown.setdefault((job_id, result["index"]), shown) != shown:
            self.complaints.append(f"an outcome of {job_id} changed: {result}")

    def asked_in(self, job_id: str, lines: list[dict[str, Any]]) -> list[str]:
        """Return the custom ids of a job; one that was not acknowledged is recognized by its first."""
        if job_id in self.batches:
            return self.batches[job_id]
        [custom_ids] = [each for each in self.unanswered if each[0] == lines[0]["custom_id"]]
        return custom_ids


class Sender:
    """Sends batches, once each, and keeps what it was told: acknowledged under an id, or nothing."""

    def __init__(self, callback_url: str | None = None) -> None:
        self._callback_url = callback_url
        self._n_sent = 0
        self.ledger = Ledger()

    def post(self, url: str, n: int, size: int = 10) -> bool:
        """Send a batch of `n` requests, each different from all others; tell whether it was acknowledged."""
        self._n_sent += 1
        texts = [f"batch {self._n_sent} text {index} {'x' * size}" for index in range(n)]
        body: dict[str, Any] = {
            "requests": [_stepping(text) if i % 10 == 9 else _echo(text) for i, text in enumerate(texts)]
        }
        if self._callback_url:
            body["callback_url"] = self._callback_url
        try:
            job = ask(url, BATCHES, body)
        except urllib.error.HTTPError:  # an answer, if not the wanted one
            raise
        except CONNECTION_ERRORS:
            self.ledger.unanswered.append(texts)
            return False
        self.ledger.batches[job["id"]] = texts
        return True

    @property
    def job_ids(self) -> list[str]:
        """The jobs that were acknowledged."""
        return list(self.ledger.batches)

    def judge(self, url: str, hook: Receiver | None = None) -> None:
        """Hold what was sent against what a server says when all of it has ended."""
        hold_against(url, self.ledger, lambda text: text, hook=hook)


def _echo(text: str) -> dict[str, Any]:
    return {"agent_id": "echo", "custom_id": text, "input": text}


def _stepping(text: str) -> dict[str, Any]:
    """A request that is answered with its text as well, after a step with a tool."""
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    script = {"script": [{"tool_calls": [call]}, {"text": text}]}
    return {"agent_id": "stepper", "custom_id": text, "input": json.dumps(script)}


def hold_against(
    url: str,
    ledger: Ledger,
    answer_to: Callable[[str], str],
    *,
    bad: frozenset[str] = frozenset(),
    hook: Receiver | None = None,
    timeout_s: float = 60,
) -> None:
    """Wait for all jobs to end, then compare.

    What was acknowledged is present and complete; what was not is absent or complete; every item has exactly one
    outcome, of the right content, which is the one that was shown before; and every job's callback comes.  `answer_to`
    gives the right content for a custom id; `bad` are those of requests that cannot succeed.
    """
    jobs = until(lambda: all_ended(url), timeout_s)
    found = {job["id"]: job for job in jobs}
    assert set(ledger.batches) <= set(found), "an acknowledged batch is lost"
    for job_id, job in found.items():
        lines = list(results(url, job_id))
        custom_ids = ledger.asked_in(job_id, lines)
        assert [line["index"] for line in lines] == list(range(len(custom_ids))), f"{job_id}: lost or twice"
        assert [line["custom_id"] for line in lines] == custom_ids, f"{job_id}: not what was sent"
        assert [line for line in lines if not _is_right(line, answer_to, bad)] == []
        n_bad = len(bad.intersection(custom_ids))
        assert job["metadata"]["request_counts"]["succeeded"] == len(lines) - n_bad
        assert {index for shown_of, index in ledger.shown if shown_of == job_id} <= set(range(len(lines)))
        for line in lines:
            ledger.show(job_id, line)
    assert ledger.complaints == []
    if hook is not None:
        until(lambda: set(found) <= set(called_back(hook)), timeout_s)


def called_back(hook: Receiver) -> list[str]:
    """Return which job each callback was of."""
    return [json.loads(received.body)["job_id"] for received in hook.received]


def all_ended(url: str) -> list[dict[str, Any]] | None:
    """Return all jobs when the last has ended; a server that cannot read its store at the moment is asked again."""
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
