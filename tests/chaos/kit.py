"""What the chaos tests are made of: a supervised server, a client with a ledger, faults, and a judge.

Nothing here asks batchray's own code what happened: the client writes down what was acknowledged, the provider what it
was asked, and the judge compares.
"""

from __future__ import annotations

import functools
import json
import random
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.judge import Ledger, hold_against
from tests.polling import seconds_until, until
from tests.provider_server import ProviderServer
from tests.server.http_client import BATCHES, ask, if_available, results
from tests.server.live import LiveServer, live_server

_POLL_S = 0.25
_N_STEPS = 2
_CALLS = {"good": 1, "stepper": 1 + _N_STEPS, "deadly": 0}
"""Model calls that one request to an agent needs."""
_AGENTS = ("/dashboard/agent.py", "/runtime_env/agent/", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Marks of Ray's agents in their command lines, from their start and from when they have given themselves a name."""


class Supervised:
    """A server that is started again whenever it ends, as a supervisor does."""

    def __init__(self, data_dir: Path, agents: Path, *options: str, executor: str, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]
        self.data_dir, self.url = data_dir, f"http://127.0.0.1:{self.port}"
        self.logs: list[str] = []
        self.statuses: list[int] = []
        self.family: set[psutil.Process] = set()
        port = ("--port", str(self.port))
        self._start: Callable[[], AbstractContextManager[LiveServer]] = functools.partial(
            live_server, data_dir, *port, *options, agents=agents, executor=executor, **environment
        )
        self._server: LiveServer | None = None
        self._is_stopping, self._is_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._thread.start()
        until(self._is_up.is_set, 300)

    def _supervise(self) -> None:
        while not self._is_stopping.is_set():
            try:
                with self._start() as server:
                    self._server = server
                    self._is_up.set()
                    self.statuses.append(server.process.wait())
                    self._is_up.clear()
                    self.logs.append(server.log)
            except AssertionError as error:  # it ended while it started, and is started again
                self.logs.append(str(error))

    @property
    def pid(self) -> int:
        """The process of now."""
        assert self._server is not None
        return self._server.pid

    def processes(self, prefix: str) -> list[psutil.Process]:
        """Return the server's descendants whose name starts so; all that were ever seen are kept for the judge."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                self.family.add(process)
                with suppress(psutil.NoSuchProcess):
                    if process.name().startswith(prefix):
                        found.append(process)
        return found

    def kill(self) -> None:
        """Kill the server, and wait for the next one."""
        self.processes("")
        self._is_up.clear()
        psutil.Process(self.pid).kill()
        until(self._is_up.is_set, 120)

    def terminate(self) -> tuple[float, float]:
        """Ask the server to end, and wait for the next one; returns when it was not ready, and when it had ended."""
        self.processes("")
        self._is_up.clear()
        n_ended = len(self.statuses)
        psutil.Process(self.pid).terminate()
        unready_s = seconds_until(lambda: if_available(lambda: ask(self.url, "/readyz")) is None, 60)
        ended_s = unready_s + seconds_until(lambda: len(self.statuses) > n_ended, 120)
        until(self._is_up.is_set, 120)
        return unready_s, ended_s

    def stop(self) -> int:
        """End the server for good; returns its exit status."""
        self.processes("")
        self._is_stopping.set()
        if self._server is not None and self._server.process.poll() is None:
            self._server.process.terminate()
        self._thread.join(120)
        return self.statuses[-1]


class Client:
    """Sends batches until they are acknowledged, and watches them."""

    def __init__(self, url: str) -> None:
        self.url, self.ledger = url, Ledger()
        self._counts: dict[str, dict[str, int]] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="client", daemon=True)
        self._thread.start()

    def create(self, requests: list[dict[str, Any]], timeout_s: float = 120) -> str:
        """Send a batch, as often as it takes, with one idempotency key."""
        send = functools.partial(ask, self.url, BATCHES, {"requests": requests}, Idempotency_Key=uuid.uuid4().hex)
        job_id = str(until(lambda: if_available(send), timeout_s)["id"])
        self.ledger.batches[job_id] = [each["custom_id"] for each in requests]
        self.ledger.n_calls_needed += sum(_CALLS[each["agent_id"]] for each in requests)
        return job_id

    def job(self, job_id: str) -> dict[str, Any] | None:
        """Return a job, or None while the server does not answer."""
        job: dict[str, Any] | None = if_available(lambda: ask(self.url, f"{BATCHES}/{job_id}"))
        return job

    def results(self, job_id: str) -> list[dict[str, Any]]:
        """Return the outcomes that there are."""
        return if_available(lambda: list(results(self.url, job_id))) or []

    @property
    def done(self) -> int:
        """Items with an outcome, as far as the client was shown."""
        return sum(counts["total"] - counts["pending"] for counts in list(self._counts.values()))

    @property
    def is_all_over(self) -> bool:
        """Whether all batches have ended."""
        jobs = [self.job(job_id) for job_id in self.ledger.batches]
        return all(job is not None and job["status"] not in ("created", "running") for job in jobs)

    def count(self) -> int:
        """Ask for the counts now, as soon as the server answers."""
        while None in (jobs := [self.job(job_id) for job_id in self.ledger.batches]):
            time.sleep(0.05)
        counts = [job["metadata"]["request_counts"] for job in jobs if job is not None]
        return sum(each["total"] - each["pending"] for each in counts)

    def keep_what_is_shown(self) -> None:
        """Write down all outcomes that are shown now; none may change or disappear."""
        for job_id in self.ledger.batches:
            for result in self.results(job_id):
                self.ledger.show(job_id, result)

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(60)

    def _watch(self) -> None:
        """Poll the counts, which may never go back."""
        while not self._is_over.wait(_POLL_S):
            for job_id in list(self.ledger.batches):
                if (job := self.job(job_id)) is None:
                    continue
                counts, before = job["metadata"]["request_counts"], self._counts.get(job_id)
                if before and any(counts[name] < before[name] for name in counts if name != "pending"):
                    self.ledger.complaints.append(f"counts of {job_id} went back: {before} -> {counts}")
                self._counts[job_id] = counts


def questions(n: int, prefix: str) -> list[dict[str, Any]]:
    """Return requests whose right answers are known; every tenth of them takes steps with a tool."""
    in_steps = f'[[steps:{_N_STEPS}]] [[tool:add {{"a": 1, "b": 2}}]]'
    return [
        {
            "agent_id": "good" if i % 10 else "stepper",
            "custom_id": f"{prefix}-{i}",
            "input": f"{prefix} {i} [[say:answer to {prefix}-{i}]] {'' if i % 10 else in_steps}",
        }
        for i in range(n)
    ]


def start_server(directory: Path, base_url: str, n_in_flight: int, executor: str, **environment: str) -> Supervised:
    """Start a server with an agent that asks a provider, and one that dies as it is told to."""
    agents = {
        "providers": {"local": {"protocol": "openai", "base_url": base_url}},
        "agents": [
            {"id": "good", "model": "local/m"},
            {"id": "stepper", "model": "local/m", "tools": ["tests.chaos.agents:add"]},
            {"id": "deadly", "run": "tests.cluster.dying:sync_agent"},
        ],
    }
    file = directory / "agents.json"
    file.write_text(json.dumps(agents))
    options = ("--lanes", "2", "--max-in-flight", str(n_in_flight))
    settings = {"BATCHRAY_MIN_WATCHED_ITEMS": "1", "BATCHRAY_NUM_CPUS": "2", **environment}
    return Supervised(directory / "data", file, *options, executor=executor, **settings)


def judge(client: Client, provider: ProviderServer, *, bad: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Hold what the client was promised against what it is shown at the end.  Returns figures for the report.

    `bad` are the custom ids of requests that cannot succeed.
    """
    hold_against(client.url, client.ledger, lambda custom_id: f"answer to {custom_id}", bad=bad)
    needed = client.ledger.n_calls_needed
    assert provider.n_calls >= needed
    return {"requests": client.ledger.n_requests, "amplification": round(provider.n_calls / needed, 3)}


def check_database(data_dir: Path) -> None:
    """Let SQLite itself look at the store that a server left behind."""
    connection = sqlite3.connect(data_dir / "batchray.db")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        twice = "SELECT job, idx FROM outcomes GROUP BY job, idx HAVING count(*) > 1"
        assert connection.execute(twice).fetchall() == []
    finally:
        connection.close()


def check_no_process_is_left(family: set[psutil.Process], timeout_s: float, *, with_agents: bool) -> None:
    """Wait until all that a server ever started is gone.

    Two agents of Ray's notice the death of their node only after a minute, and are left out without `with_agents`.
    """

    def is_left(process: psutil.Process) -> bool:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return False
            return with_agents or not any(word in " ".join(process.cmdline()) for word in _AGENTS)
        except psutil.NoSuchProcess:
            return False

    until(lambda: not any(map(is_left, family)), timeout_s)


def pick(rng: random.Random, server: Supervised, prefix: str) -> psutil.Process:
    """Return one of the server's processes of a kind, as soon as there is one."""
    until(lambda: bool(server.processes(prefix)), 60)
    found = server.processes(prefix)
    return rng.choice(found) if found else pick(rng, server, prefix)


@contextmanager
def scene(server: Supervised) -> Iterator[tuple[Supervised, Client]]:
    """A server and its client, both ended in the end."""
    with ExitStack() as stack:
        stack.callback(server.stop)
        client = Client(server.url)
        stack.callback(client.close)
        yield server, client
