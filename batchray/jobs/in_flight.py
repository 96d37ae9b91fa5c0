"""The attempts of a running job that are in flight, and those among them that have stalled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from batchray.jobs.deadlines import Stopwatch


@dataclass(frozen=True, slots=True)
class Flight:
    """One attempt in flight; stalled when it is older than `limit_s`, without the pauses of its stopwatch."""

    index: int
    agent_id: str
    attempt: int
    started_ns: int
    limit_s: float
    stopwatch: Stopwatch | None = None

    def is_stalled(self, now_ns: int) -> bool:
        """Whether it has run for longer than its limit."""
        age_s = (now_ns - self.started_ns) / 1e9
        if age_s <= self.limit_s:
            return False
        return self.stopwatch is None or self.stopwatch.without_pauses(age_s) > self.limit_s


class InFlight:
    """The attempts in flight, in the order of their start.  `clock` is monotonic, in ns."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._flights: dict[int, Flight] = {}
        self._known_stalled: set[Flight] = set()

    def begin(
        self, index: int, agent_id: str, attempt: int, limit_s: float, stopwatch: Stopwatch | None = None
    ) -> Flight:
        """Add an attempt that is being spawned."""
        flight = self._flights[index] = Flight(index, agent_id, attempt, self._clock(), limit_s, stopwatch)
        return flight

    def end(self, index: int) -> None:
        """Remove an attempt that is over."""
        del self._flights[index]

    def newly_stalled(self) -> list[Flight]:
        """Return the attempts that have stalled since the last call, the oldest first."""
        now = self._clock()
        stalled = {flight for flight in self._flights.values() if flight.is_stalled(now)}
        new, self._known_stalled = stalled - self._known_stalled, stalled
        return sorted(new, key=lambda flight: flight.started_ns)

    def oldest(self, n: int) -> list[dict[str, Any]]:
        """Return the `n` oldest attempts as JSON-able data."""
        return [self._view(flight) for flight in islice(self._flights.values(), n)]

    def stalled(self, n: int) -> list[dict[str, Any]]:
        """Return up to `n` attempts that `newly_stalled` has found and that are still in flight, as JSON-able data."""
        still = (flight for flight in self._known_stalled if self._flights.get(flight.index) == flight)
        return [self._view(flight) for flight in islice(still, n)]

    def _view(self, flight: Flight) -> dict[str, Any]:
        age_ns = self._clock() - flight.started_ns
        return {"index": flight.index, "agent_id": flight.agent_id, "attempt": flight.attempt, "age_ns": age_ns}
