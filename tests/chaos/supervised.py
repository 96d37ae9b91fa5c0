"""A server under a supervisor, whose processes a test kills."""

from __future__ import annotations

import functools
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.chaos.client import WatchingClient
from tests.polling import seconds_until, until
from tests.processes import command_of, descendants, is_alive, named
from tests.server.http_client import ask, if_available
from tests.server.live import LiveServer, live_server

_RAY_AGENTS = ("/dashboard/agent.py", "/runtime_env/agent/", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Parts of the command lines of Ray's agents, before and after they set their process titles."""


class SupervisedServer:
    """A server that is restarted whenever it ends, as a supervisor does."""

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
            except AssertionError as error:  # it ended before it listened, and is restarted
                self.logs.append(str(error))

    @property
    def pid(self) -> int:
        """The current process."""
        assert self._server is not None
        return self._server.pid

    def processes(self, prefix: str) -> list[psutil.Process]:
        """Return the server's descendants whose name starts with `prefix`, and add all of them to `family`."""
        family = descendants(self.pid)
        self.family.update(family)
        return named(prefix, family)

    def kill(self) -> None:
        """Kill the server, and wait until the next one listens."""
        self.processes("")
        self._is_up.clear()
        psutil.Process(self.pid).kill()
        until(self._is_up.is_set, 120)

    def terminate(self) -> tuple[float, float]:
        """Terminate the server, and wait until the next one listens.

        Returns after how many seconds it was not ready, and after how many it had ended.
        """
        self.processes("")
        self._is_up.clear()
        n_ended = len(self.statuses)
        psutil.Process(self.pid).terminate()
        unready_s = seconds_until(lambda: if_available(lambda: ask(self.url, "/readyz")) is None, 60)
        ended_s = unready_s + seconds_until(lambda: len(self.statuses) > n_ended, 120)
        until(self._is_up.is_set, 120)
        return unready_s, ended_s

    def stop(self) -> int:
        """Terminate the server without a restart; returns its exit status."""
        self.processes("")
        self._is_stopping.set()
        if self._server is not None and self._server.process.poll() is None:
            self._server.process.terminate()
        self._thread.join(120)
        return self.statuses[-1]


def start_server(
    directory: Path, base_url: str, n_in_flight: int, executor: str, **environment: str
) -> SupervisedServer:
    """Start a server with two agents that call a provider, and one that ends its process as the input says."""
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
    return SupervisedServer(directory / "data", file, *options, executor=executor, **settings)


def check_no_process_is_left(family: set[psutil.Process], timeout_s: float, *, with_agents: bool) -> None:
    """Wait until all processes that a server ever started have ended.

    Two of Ray's agents notice the end of their node only after a minute; without `with_agents` they are left out.
    """

    def is_left(process: psutil.Process) -> bool:
        if not is_alive(process):
            return False
        return with_agents or not any(word in " ".join(command_of(process)) for word in _RAY_AGENTS)

    until(lambda: not any(map(is_left, family)), timeout_s)


def random_process(rng: random.Random, server: SupervisedServer, prefix: str) -> psutil.Process:
    """Wait until the server has a process whose name starts with `prefix`, and return one at random."""
    until(lambda: bool(server.processes(prefix)), 60)
    found = server.processes(prefix)
    return rng.choice(found) if found else random_process(rng, server, prefix)


@contextmanager
def with_client(server: SupervisedServer) -> Iterator[tuple[SupervisedServer, WatchingClient]]:
    """Yield a server and a client of it, and end both."""
    with ExitStack() as stack:
        stack.callback(server.stop)
        client = WatchingClient(server.url)
        stack.callback(client.close)
        yield server, client
