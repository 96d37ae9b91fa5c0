"""The providers that take no calls now, or fewer, as the workers of an executor report them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from batchray.schema import ProviderWait

REPORT_S = 0.25
"""How often a worker reports while a provider holds its calls back."""


@dataclass(frozen=True, slots=True)
class ProviderState:
    """A provider that holds calls back, over all workers.

    `is_shut`: a worker starts no call.  `reason` is the newest failure of the worker that waits longest.  `opens_at`
    and `since` are moments of a monotonic clock, in seconds: the next call may start, and the calls have waited.
    """

    provider: str
    is_unavailable: bool
    """It is away, or refuses every call; otherwise it limits the rate of calls."""
    reason: str
    is_shut: bool
    n_waiting: int
    opens_at: float
    since: float
    has_answered: bool

    @property
    def holds_back(self) -> bool:
        """Whether a request that starts now would only wait."""
        return self.is_shut or self.n_waiting > 0


class ProviderBoard:
    """Keeps the last report of each worker.  Each worker reports whenever its list changes, and every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reports: dict[Hashable, list[tuple[str, ProviderState]]] = {}
        self._listeners: dict[Callable[[], None], None] = {}

    def report(self, worker: Hashable, waits: Iterable[ProviderWait]) -> None:
        """Store what a worker reports now; nothing if no provider holds it back."""
        now = self._clock()
        states = [(wait.endpoint, _state(wait, now)) for wait in waits]
        before = self._reports.pop(worker, [])
        if states:
            self._reports[worker] = states
        if states or before:
            for call in list(self._listeners):
                call()

    def forget(self, worker: Hashable) -> None:
        """Forget a worker that has ended."""
        self.report(worker, ())

    def states(self) -> dict[str, ProviderState]:
        """Return the providers that hold calls back, by their endpoint."""
        by_endpoint: dict[str, list[ProviderState]] = {}
        for reported in self._reports.values():
            for endpoint, state in reported:
                by_endpoint.setdefault(endpoint, []).append(state)
        return {endpoint: _merged(states) for endpoint, states in by_endpoint.items()}

    @contextmanager
    def listening(self, on_change: Callable[[], None]) -> Iterator[None]:
        """Call a function after each report that may change the states, inside this block."""
        self._listeners[on_change] = None
        try:
            yield
        finally:
            del self._listeners[on_change]


def _state(wait: ProviderWait, now: float) -> ProviderState:
    return ProviderState(
        wait.provider,
        wait.kind == "unavailable",
        wait.reason,
        wait.since_s > 0 or wait.wait_s > 0,
        wait.n_waiting,
        now + wait.wait_s,
        now - wait.since_s,
        wait.has_answered,
    )


def _merged(states: Sequence[ProviderState]) -> ProviderState:
    longest = max(states, key=lambda state: (state.is_shut, state.opens_at))
    if len(states) == 1:
        return longest
    return ProviderState(
        longest.provider,
        longest.is_unavailable,
        longest.reason,
        longest.is_shut,
        sum(state.n_waiting for state in states),
        longest.opens_at,
        min(state.since for state in states),
        any(state.has_answered for state in states),
    )
