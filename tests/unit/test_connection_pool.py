"""The places of connections: a limit that holds, room for who does something, and a reserve for health checks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.server.connection_pool import ConnectionPool


class Client:
    """A connection that only remembers whether it was dropped."""

    def __init__(self) -> None:
        self.is_dropped = False

    def drop(self) -> None:
        assert not self.is_dropped
        self.is_dropped = True


def full_pool(n_places: int, n_reserve: int = 2) -> tuple[ConnectionPool[Client], list[Client]]:
    pool, clients = ConnectionPool[Client](n_places, n_reserve), [Client() for _ in range(n_places)]
    for client in clients:
        pool.add(client)
    return pool, clients


def is_in_reserve_when_added(pool: ConnectionPool[Client], client: Client) -> bool:
    pool.add(client)
    return pool.is_in_reserve(client)


def dropped(clients: list[Client]) -> list[int]:
    return [index for index, client in enumerate(clients) if client.is_dropped]


def test_a_new_connection_takes_the_place_of_the_one_that_was_silent_for_longest() -> None:
    pool, clients = full_pool(3)
    assert not is_in_reserve_when_added(pool, Client())
    assert dropped(clients) == [0]
    assert pool.n_open == 3


def test_connections_that_were_silent_give_way_before_those_that_asked_something() -> None:
    pool, clients = full_pool(3)
    for client in clients[:2]:
        pool.begin_request(client)
        pool.end_request(client)
    for _ in range(2):
        newest = Client()
        assert not is_in_reserve_when_added(pool, newest)
        pool.begin_request(newest)
    assert dropped(clients) == [0, 2]


def test_busy_connections_are_kept_and_new_ones_go_to_the_reserve() -> None:
    pool, clients = full_pool(2, n_reserve=2)
    for client in clients:
        pool.begin_request(client)
    newest = [Client() for _ in range(3)]
    assert [is_in_reserve_when_added(pool, client) for client in newest] == [True] * 3
    assert (dropped(clients), dropped(newest), pool.n_open) == ([], [0], 4)
    pool.remove(clients[0])
    assert not is_in_reserve_when_added(pool, Client())


def test_a_connection_of_the_reserve_never_becomes_a_regular_one() -> None:
    pool, [client] = full_pool(1)
    pool.begin_request(client)
    extra = Client()
    assert is_in_reserve_when_added(pool, extra)
    pool.begin_request(extra)
    pool.end_request(extra)
    pool.remove(client)
    assert not pool.make_room()
    assert not extra.is_dropped


def test_a_connection_that_begins_to_send_keeps_the_place_that_it_had() -> None:
    pool, [client] = full_pool(1)
    pool.begin_request(client)
    extra, sender = Client(), Client()
    pool.add(extra)
    pool.replace(extra, sender)
    assert (pool.is_in_reserve(extra), pool.is_in_reserve(sender), pool.n_open) == (False, True, 2)
    assert [*pool] == [client, sender]


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.tuples(st.sampled_from("abre"), st.integers(0, 30))))
def test_no_history_exceeds_the_limit_or_drops_a_busy_connection(
    n_places: int, n_reserve: int, history: list[tuple[str, int]]
) -> None:
    pool, clients, busy = ConnectionPool[Client](n_places, n_reserve), list[Client](), set[int]()
    regular = set[int]()
    for what, number in history:
        if what == "a":
            clients.append(Client())
            if not is_in_reserve_when_added(pool, clients[-1]):
                regular.add(len(clients) - 1)
        elif clients:
            index = number % len(clients)
            {"b": pool.begin_request, "r": pool.remove, "e": pool.end_request}[what](clients[index])
            (busy.add if what == "b" and index in regular and not clients[index].is_dropped else busy.discard)(index)
            if what == "r":
                regular.discard(index)
        assert pool.n_open <= n_places + n_reserve
        assert not [index for index in busy & regular if clients[index].is_dropped]


@pytest.mark.parametrize("n_silent", [0, 2])
def test_room_can_be_made_if_a_client_is_silent(n_silent: int) -> None:
    pool, clients = full_pool(3)
    for client in clients[n_silent:]:
        pool.begin_request(client)
    assert [pool.make_room() for _ in range(3)] == [True] * n_silent + [False] * (3 - n_silent)
    assert dropped(clients) == [*range(n_silent)]
