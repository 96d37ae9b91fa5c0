"""What a client knows of its batches, against what a server says in the end; nothing here is batchray's own code."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.waiting import until

AGENTS = Path(__file__).parent / "agents.yaml"
BATCHES = "/v1/messages/batches"

_LOST = (OSError, http.client.HTTPException)  # what a client sees of a server that dies


class Receiver:
    """Takes callbacks, and keeps which job each was of."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Yield the address to send to."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.jobs.append(payload["job_id"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/"
            finally:
                server.shutdown()
                thread.join()


class Client:
    """Posts batches, and keeps what it was told of each: acknowledged under an id, or nothing."""

    def __init__(self, callback_url: str | None = None) -> None:
        self._callback_url = callback_url
        self._n_sent = 0
        self.acknowledged: dict[str, list[str]] = {}
        self.unanswered: list[list[str]] = []

    def post(self, url: str, n: int, size: int = 10) -> bool:
        """Post a batch of `n` requests, each different from all others; tell whether it was acknowledged."""
        self._n_sent += 1
        texts = [f"batch {self._n_sent} text {index} {'x' * size}" for index in range(n)]
        requests = [stepping(text) if index % 10 == 9 else echoing(text) for index, text in enumerate(texts)]
        body: dict[str, Any] = {"requests": requests}
        if self._callback_url:
            body["callback_url"] = self._callback_url
        try:
            job = ask(url, BATCHES, body)
        except urllib.error.HTTPError:  # an answer, if not the wanted one
            raise
        except _LOST:
            self.unanswered.append(texts)
            return False
        self.acknowledged[job["id"]] = texts
        return True

    def judge(self, url: str, receiver: Receiver | None = None, seconds: float = 60) -> None:
        """Wait for all jobs to end, then compare.

        What was acknowledged is present and complete; what was not is absent or complete; every item has exactly one
        outcome, of the right content; and every job's callback has come.
        """
        jobs = until(lambda: all_ended(url), seconds)
        found = {job["id"]: job for job in jobs}
        assert set(self.acknowledged) <= set(found), "an acknowledged batch is lost"
        for job_id, job in found.items():
            lines = list(results(url, job_id))
            texts = self.acknowledged.get(job_id) or self._unanswered_of(lines)
            assert [line["index"] for line in lines] == list(range(len(texts))), f"{job_id}: lost or twice"
            assert [line["custom_id"] for line in lines] == texts, f"{job_id}: not what was sent"
            assert Counter(line["status"] for line in lines) == {"succeeded": len(texts)}
            assert [line["messages"][-1]["content"] for line in lines] == texts, f"{job_id}: wrong content"
            assert job["metadata"]["request_counts"]["succeeded"] == len(texts)
        if receiver is not None:
            until(lambda: set(found) <= set(receiver.jobs), seconds)

    def _unanswered_of(self, lines: list[dict[str, Any]]) -> list[str]:
        [texts] = [texts for texts in self.unanswered if texts[0] == lines[0]["custom_id"]]
        return texts


def echoing(text: str) -> dict[str, Any]:
    """A request that is answered with its text."""
    return {"agent_id": "echo", "custom_id": text, "input": text}


def stepping(text: str) -> dict[str, Any]:
    """A request that is answered so as well, after a step with a tool."""
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    script = {"script": [{"tool_calls": [call]}, {"text": text}]}
    return {"agent_id": "stepper", "custom_id": text, "input": json.dumps(script)}


def ask(url: str, path: str, body: Any = None, method: str | None = None) -> Any:
    """Return the JSON that a server answers with."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def status_of(url: str, path: str, body: Any = None) -> int:
    """Return the status that a server answers with."""
    try:
        ask(url, path, body)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


def results(url: str, job_id: str) -> Iterator[dict[str, Any]]:
    """Yield a job's results, in index order."""
    with urllib.request.urlopen(f"{url}{BATCHES}/{job_id}/results", timeout=60) as answer:
        for line in answer:
            yield json.loads(line)


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
