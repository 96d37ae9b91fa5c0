"""Clients of a server that may die at any moment, and the log of what it acknowledged and showed to them."""

from __future__ import annotations

import functools
import json
import threading
import time
import urllib.error
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.polling import until
from tests.server.http_client import BATCHES, CONNECTION_ERRORS, ask, if_available, results

AGENTS = Path(__file__).parent / "agents.yaml"
"""The agents of the requests that `Client.post` sends."""

_POLL_S = 0.25
_N_STEPS = 2
_MODEL_CALLS = {"good": 1, "stepper": 1 + _N_STEPS, "deadly": 0}
"""Model calls that one request to an agent of `questions` needs."""


@dataclass
class RequestLog:
    """The batches of a client, as lists of custom ids.

    `batches` are acknowledged, by job id; `unanswered` got no response.  `n_calls_needed` counts the model calls that
    the acknowledged requests need if each call is made once.  `shown` holds every outcome that the client has seen.
    """

    batches: dict[str, list[str]] = field(default_factory=dict)
    unanswered: list[list[str]] = field(default_factory=list)
    n_calls_needed: int = 0
    shown: dict[tuple[str, int], str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    @property
    def n_requests(self) -> int:
        """Requests that were acknowledged."""
        return sum(map(len, self.batches.values()))

    def show(self, job_id: str, result: dict[str, Any]) -> None:
        """Record an outcome that the client sees; from now on it may neither change nor disappear."""
        shown = json.dumps(result, sort_keys=True)
        if self.shown.setdefault((job_id, result["index"]), shown) != shown:
            self.complaints.append(f"an outcome of {job_id} changed: {result}")

    def custom_ids_of(self, job_id: str, lines: list[dict[str, Any]]) -> list[str]:
        """Return the custom ids of a job; a batch that was not acknowledged is recognized by its first one."""
        if job_id in self.batches:
            return self.batches[job_id]
        [custom_ids] = [each for each in self.unanswered if each[0] == lines[0]["custom_id"]]
        return custom_ids


class Client:
    """Sends each batch once, without a retry, and logs whether it was acknowledged."""

    def __init__(self, callback_url: str | None = None) -> None:
        self._callback_url = callback_url
        self._n_sent = 0
        self.log = RequestLog()

    @property
    def job_ids(self) -> list[str]:
        """The jobs that were acknowledged."""
        return list(self.log.batches)

    def post(self, url: str, n: int, size: int = 10) -> bool:
        """Send a batch of `n` unique requests that are answered with their text; returns whether it was acknowledged.

        `size` is the length of the padding of each text.
        """
        self._n_sent += 1
        texts = [f"batch {self._n_sent} text {index} {'x' * size}" for index in range(n)]
        body: dict[str, Any] = {"requests": [_in_steps(t) if i % 10 == 9 else _echo(t) for i, t in enumerate(texts)]}
        if self._callback_url:
            body["callback_url"] = self._callback_url
        try:
            job = ask(url, BATCHES, body)
        except urllib.error.HTTPError:  # a refusal, which no test expects here
            raise
        except CONNECTION_ERRORS:
            self.log.unanswered.append(texts)
            return False
        self.log.batches[job["id"]] = texts
        return True


class WatchingClient(Client):
    """Sends each batch until it is acknowledged, and polls the counts of all batches on a thread."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self._counts: dict[str, dict[str, int]] = {}
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._poll_counts, name="client", daemon=True)
        self._thread.start()

    def create(self, requests: list[dict[str, Any]], timeout_s: float = 120) -> str:
        """Send a batch until it is acknowledged, with one idempotency key."""
        send = functools.partial(ask, self.url, BATCHES, {"requests": requests}, Idempotency_Key=uuid.uuid4().hex)
        job_id = str(until(lambda: if_available(send), timeout_s)["id"])
        self.log.batches[job_id] = [each["custom_id"] for each in requests]
        self.log.n_calls_needed += sum(_MODEL_CALLS[each["agent_id"]] for each in requests)
        return job_id

    def job(self, job_id: str) -> dict[str, Any] | None:
        """Return a job, or None while the server is not available."""
        job: dict[str, Any] | None = if_available(lambda: ask(self.url, f"{BATCHES}/{job_id}"))
        return job

    def results(self, job_id: str) -> list[dict[str, Any]]:
        """Return the outcomes of a job so far."""
        return if_available(lambda: list(results(self.url, job_id))) or []

    @property
    def n_done(self) -> int:
        """Items with an outcome, as of the last poll."""
        return sum(counts["total"] - counts["pending"] for counts in list(self._counts.values()))

    @property
    def is_all_over(self) -> bool:
        """Whether all batches have ended."""
        jobs = [self.job(job_id) for job_id in self.log.batches]
        return all(job is not None and job["status"] not in ("created", "running") for job in jobs)

    def count_done(self) -> int:
        """Wait until the server is available, and return how many items have an outcome."""
        while None in (jobs := [self.job(job_id) for job_id in self.log.batches]):
            time.sleep(0.05)
        counts = [job["metadata"]["request_counts"] for job in jobs if job is not None]
        return sum(each["total"] - each["pending"] for each in counts)

    def log_outcomes(self) -> None:
        """Log all outcomes that the server shows now; none may change or disappear later."""
        for job_id in self.log.batches:
            for result in self.results(job_id):
                self.log.show(job_id, result)

    def close(self) -> None:
        """Stop polling."""
        self._is_closed.set()
        self._thread.join(60)

    def _poll_counts(self) -> None:
        """Poll the counts; a count may never decrease."""
        while not self._is_closed.wait(_POLL_S):
            for job_id in list(self.log.batches):
                if (job := self.job(job_id)) is None:
                    continue
                counts, before = job["metadata"]["request_counts"], self._counts.get(job_id)
                if before and any(counts[name] < before[name] for name in counts if name != "pending"):
                    self.log.complaints.append(f"counts of {job_id} decreased: {before} -> {counts}")
                self._counts[job_id] = counts


def questions(n: int, prefix: str) -> list[dict[str, Any]]:
    """Return requests to a provider, which answers `answer to CUSTOM_ID`; every tenth one takes steps with a tool."""
    in_steps = f'[[steps:{_N_STEPS}]] [[tool:add {{"a": 1, "b": 2}}]]'
    return [
        {
            "agent_id": "good" if i % 10 else "stepper",
            "custom_id": f"{prefix}-{i}",
            "input": f"{prefix} {i} [[say:answer to {prefix}-{i}]] {'' if i % 10 else in_steps}",
        }
        for i in range(n)
    ]


def _echo(text: str) -> dict[str, Any]:
    return {"agent_id": "echo", "custom_id": text, "input": text}


def _in_steps(text: str) -> dict[str, Any]:
    """Return a request that is also answered with its text, after a step with a tool."""
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    script = {"script": [{"tool_calls": [call]}, {"text": text}]}
    return {"agent_id": "stepper", "custom_id": text, "input": json.dumps(script)}
