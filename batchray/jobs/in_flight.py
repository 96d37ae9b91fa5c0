"""What is in flight of a running job: since when, and which of it makes no progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any


@dataclass(frozen=True, slots=True)
class Flight:
    """One attempt on its way.  `limit_s` is the age at which nothing explains any more that it has not ended."""

    index: int
    agent_id: str
    attempt: int
    started_ns: int
    limit_s: float


class InFlight:
    """The attempts in flight, in the order of their start.  `clock` is monotonic, in ns."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._flights: dict[int, Flight] = {}
        self._named: set[Flight] = set()

    def begin(self, index: int, agent_id: str, attempt: int, limit_s: float) -> None:
        """An attempt is spawned."""
        self._flights[index] = Flight(index, agent_id, attempt, self._clock(), limit_s)

    def end(self, index: int) -> None:
        """An attempt is over, however it ended."""
        del self._flights[index]

    def started_ns(self, index: int) -> int:
        """Return when the item's attempt was spawned."""
        return self._flights[index].started_ns

    def newly_stalled(self) -> list[Flight]:
        """Return the attempts that make no progress; each is named once."""
        now = self._clock()
        stalled = {flight for flight in self._flights.values() if now - flight.started_ns > flight.limit_s * 1e9}
        new, self._named = stalled - self._named, stalled
        return sorted(new, key=lambda flight: flight.started_ns)

    def oldest(self, n: int) -> list[dict[str, Any]]:
        """Return the `n` oldest attempts as plain data."""
        return [self._plain(flight) for flight in islice(self._flights.values(), n)]

    def stalled(self, n: int) -> list[dict[str, Any]]:
        """Return up to `n` attempts that were found to make no progress, as plain data."""
        still = (flight for flight in self._named if self._flights.get(flight.index) == flight)
        return [self._plain(flight) for flight in islice(still, n)]

    def _plain(self, flight: Flight) -> dict[str, Any]:
        age_ns = self._clock() - flight.started_ns
        return {"index": flight.index, "agent_id": flight.agent_id, "attempt": flight.attempt, "age_ns": age_ns}
