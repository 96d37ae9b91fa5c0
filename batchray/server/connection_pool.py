"""The connections that are open: how many there may be, and which one is closed to make room for another.

A connection costs a file descriptor, and a client needs no key to open one.  So a new connection takes the place of one
on which nothing happens.  If something happens on all of them, it gets a place in a small reserve, whose connections
answer health checks only: a supervisor must not take a busy server for a dead one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

RESERVE = 32
"""Places beyond the limit, for health checks."""


class Droppable(Protocol):
    """A connection, as the pool sees it."""

    def drop(self) -> None:
        """Close it now, whatever is still to be sent."""


C = TypeVar("C", bound=Droppable)


class ConnectionPool(Generic[C]):
    """The open connections.  Each is silent (no request yet), busy, idle (between two requests), or in the reserve."""

    def __init__(self, max_open: int, n_reserve: int = RESERVE) -> None:
        self._max_open, self._n_reserve = max_open, n_reserve
        # Dicts, because they keep the order: the first one has waited longest.
        self._silent, self._idle = dict[C, None](), dict[C, None]()
        self._busy, self._reserve = dict[C, None](), dict[C, None]()

    def __iter__(self) -> Iterator[C]:
        return iter([*self._silent, *self._idle, *self._busy, *self._reserve])

    @property
    def n_open(self) -> int:
        """How many connections are open."""
        return self._n_regular + len(self._reserve)

    @property
    def _n_regular(self) -> int:
        return len(self._silent) + len(self._idle) + len(self._busy)

    def add(self, connection: C) -> None:
        """Add a new connection, and drop another if there is no place."""
        if self._n_regular >= self._max_open and not (self._drop_first(self._silent) or self._drop_first(self._idle)):
            if len(self._reserve) >= self._n_reserve:
                self._drop_first(self._reserve)
            self._reserve[connection] = None
        else:
            self._silent[connection] = None

    def is_in_reserve(self, connection: C) -> bool:
        """Return whether a connection may only answer health checks."""
        return connection in self._reserve

    def replace(self, former: C, connection: C) -> None:
        """Give the place of a silent connection, or its place in the reserve, to another."""
        place = self._reserve if former in self._reserve else self._silent
        del place[former]
        place[connection] = None

    def begin_request(self, connection: C) -> None:
        """A request has arrived on a connection, which is kept from now on."""
        if connection not in self._reserve and self._forget(connection):
            self._busy[connection] = None

    def end_request(self, connection: C) -> None:
        """The response has been sent; the connection waits for another request."""
        if self._busy.pop(connection, self) is None:
            self._idle[connection] = None

    def remove(self, connection: C) -> None:
        """A connection is closed."""
        self._forget(connection)

    def make_room(self) -> bool:
        """Drop the connection that has been without a request for longest; return whether there was one."""
        return self._drop_first(self._silent) or self._drop_first(self._idle)

    def _forget(self, connection: C) -> bool:
        places = (self._silent, self._idle, self._busy, self._reserve)
        return any(place.pop(connection, self) is None for place in places)

    def _drop_first(self, place: dict[C, None]) -> bool:
        first = next(iter(place), None)
        if first is None:
            return False
        del place[first]
        first.drop()
        return True
