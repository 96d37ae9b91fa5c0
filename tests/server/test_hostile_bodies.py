"""Thousands of bodies that must be refused, with a reason; the server keeps nothing of them and continues."""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.server import hostile
from tests.server.live import LiveServer, live_server

BATCHES, AGENTS = "/v1/messages/batches", "/v1/agents/"
N_CONNECTIONS = 4
# The allocator may keep some freed memory; in the full form, a leak of 1 kB per body would be twice as much.
MAX_GROWTH_BYTES = 4 * 1024 * 1024
some = pytest.mark.parametrize("share", [0.2, pytest.param(1.0, marks=pytest.mark.full)])
"""Passes `share`, the part of the bodies to send."""


@pytest.fixture(scope="module")
def idle_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with no other clients, so that its contents are known."""
    with live_server(tmp_path_factory.mktemp("hostile") / "data") as running:
        yield running


class Client:
    """A few persistent connections, used in turn; a closed one is reopened."""

    def __init__(self, server: LiveServer) -> None:
        host = server.url.removeprefix("http://")
        self._connections = [http.client.HTTPConnection(host, timeout=60) for _ in range(N_CONNECTIONS)]
        self._turn = itertools.cycle(self._connections)

    def send(self, path: str, body: bytes, method: str = "POST") -> tuple[int, bytes]:
        connection = next(self._turn)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


@pytest.fixture(scope="module")
def client(idle_server: LiveServer) -> Iterator[Client]:
    client = Client(idle_server)
    yield client
    client.close()


def refuse_all(client: Client, path: str, bodies: Iterable[bytes]) -> None:
    for body in bodies:
        assert is_refusal(*client.send(path, body)), body[:2000]


def send_all(client: Client, path: str, bodies: Iterable[bytes], method: str = "POST") -> None:
    """Send bodies of which some may be accepted: a random mutation can remove the very fault of a body."""
    for body in bodies:
        status, answer = client.send(path, body, method)
        assert status == 200 or is_refusal(status, answer), body[:2000]


def is_refusal(status: int, answer: bytes) -> bool:
    assert 400 <= status < 500, (status, answer)
    error = json.loads(answer)
    assert error.keys() == {"detail", "trace_id"}
    assert {type(value) for value in error.values()} == {str}
    return bool(error["detail"])


def stored_bytes(data_dir: Path) -> int:
    return sum(file.stat().st_size for file in data_dir.glob("batchray.db*") if not file.name.endswith("-shm"))


def holds_nothing(client: Client, server: LiveServer) -> bool:
    return client.send(BATCHES, b"", "GET") == (200, b"[]") and not [*(server.data_dir / "uploads").iterdir()]


@some
def test_hostile_batches_are_refused_and_leave_nothing(share: float, idle_server: LiveServer, client: Client) -> None:
    bodies = hostile.bodies(1, hostile.BATCH, round(share * 10_000))
    n_warm = len(bodies) // 5
    process, n_stored = psutil.Process(idle_server.pid), stored_bytes(idle_server.data_dir)
    refuse_all(client, BATCHES, bodies[:n_warm])
    n_resident = process.memory_info().rss
    refuse_all(client, BATCHES, bodies[n_warm:])
    assert process.memory_info().rss - n_resident < MAX_GROWTH_BYTES
    assert stored_bytes(idle_server.data_dir) - n_stored <= 8192
    assert holds_nothing(client, idle_server)


@pytest.mark.parametrize("body", hostile.large_bodies(), ids=lambda body: repr(body[:24]))
def test_a_hostile_batch_on_disk_is_refused_and_leaves_nothing(
    idle_server: LiveServer, client: Client, body: bytes
) -> None:
    refuse_all(client, BATCHES, [body])
    assert holds_nothing(client, idle_server)


@pytest.mark.parametrize(
    "body",
    [
        b'{"%(long)b":1,"%(long)b":2}',
        b'{"model":"%(long)b"}',
        b'{"model":"offline/rules","tools":["%(long)b"]}',
        b'{"model":"offline/rules","block_ids":["%(long)b"]}',
        b'{"model":"offline/rules","%(long)b":1}',
    ],
)
def test_an_error_quotes_only_a_part_of_a_long_value(client: Client, body: bytes) -> None:
    status, answer = client.send(AGENTS, body % {b"long": b"k" * 100_000})
    assert is_refusal(status, answer)
    assert len(answer) < 2500


@some
def test_hostile_agents_do_no_harm(share: float, client: Client) -> None:
    send_all(client, AGENTS, hostile.bodies(2, hostile.AGENT, round(share * 1500)))


@some
def test_hostile_changes_of_an_agent_do_no_harm(share: float, client: Client) -> None:
    made = json.loads(client.send(AGENTS, b'{"name": "n", "model": "offline/rules"}')[1])
    send_all(client, AGENTS + made["id"], hostile.bodies(3, hostile.AGENT, round(share * 1500)), "PATCH")
    assert client.send(AGENTS + made["id"], b"", "GET")[0] == 200
    assert client.send(AGENTS + made["id"], b"", "DELETE")[0] == 200


@some
def test_hostile_questions_do_no_harm(share: float, client: Client) -> None:
    send_all(client, f"{AGENTS}clerk/messages", hostile.bodies(4, hostile.QUESTION, round(share * 1500)))
    send_all(client, f"{AGENTS}clerk/messages/stream", hostile.bodies(5, hostile.QUESTION, round(share * 500)))


def test_the_server_logged_no_traceback(idle_server: LiveServer) -> None:
    assert "Traceback" not in idle_server.log
