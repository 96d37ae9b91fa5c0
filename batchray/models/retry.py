"""When to retry a model call.  Pure: the clock and the randomness are arguments."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from batchray.schema import ProviderWait
from batchray.support.backoff import backoff_s


@dataclass(frozen=True, slots=True)
class CallTimeouts:
    """Limits of one attempt at a model call, in seconds.  The call's deadline caps each of them."""

    connect_s: float = 10.0
    """Until a connection is made.  A provider that takes longer is down."""
    idle_s: float = 60.0
    """Between two bytes, and until the first one."""
    call_s: float = 600.0
    """The attempt as a whole."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to retry a model call, and the backoff between attempts."""

    max_retries: int = 8
    base_s: float = 0.5
    cap_s: float = 30.0

    def backoff_s(self, n_retries: int, rng: random.Random) -> float:
        """Return the wait before the retry that follows `n_retries` others, in seconds.  See `backoff_s`."""
        return backoff_s(n_retries, self.base_s, self.cap_s, rng)


class GateTicket:
    """One call's state at the gate: when it may start, and the closing (`block`) that this was computed for."""

    __slots__ = ("block", "may_start_at")

    def __init__(self) -> None:
        self.block, self.may_start_at = 0, -math.inf


class RateLimitGate:
    """Holds back all calls to one provider while the provider limits its rate.

    One per provider and event loop.  The call that was told to wait starts as soon as the gate opens; the others start
    at random times over as long as the gate was closed (at most `cap_s` seconds), so that they do not arrive together.
    `clock` gives monotonic seconds; `on_change` is called when the gate closes.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        rng: random.Random,
        cap_s: float = 30.0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock, self._rng, self._cap_s, self._on_change = clock, rng, cap_s, on_change
        self._opens_at, self._spread_s, self._block = -math.inf, 0.0, 0
        self._closed_at, self._closed_s, self._reason = -math.inf, 0.0, ""
        self.n_waiting = 0
        """How many calls wait."""
        self.has_answered = False
        """Whether the provider has ever answered."""

    def status(self, provider: str) -> ProviderWait | None:
        """Return what holds the calls back, or None while the gate is open."""
        now = self._clock()
        if now >= self._opens_at:
            return None
        return ProviderWait(
            provider=provider,
            kind="rate_limited",
            reason=self._reason,
            wait_s=self._opens_at - now,
            n_waiting=self.n_waiting,
            since_s=now - self._closed_at,
            total_s=self._closed_s + now - self._closed_at,
            has_answered=self.has_answered,
        )

    def close(self, wait_s: float, ticket: GateTicket, reason: str = "") -> bool:
        """Close the gate for `wait_s` seconds; `ticket` may start first when it opens.

        Returns False, and changes nothing, if the gate is already closed for longer: `ticket` then waits as the others.
        """
        now = self._clock()
        opens_at = now + wait_s
        if opens_at <= self._opens_at:
            return False
        if now >= self._opens_at:  # it was open
            self._closed_s += max(0.0, self._opens_at - self._closed_at) if self._block else 0.0
            self._closed_at = now
        self._reason = reason
        self._opens_at, self._spread_s = opens_at, min(wait_s, self._cap_s)
        self._block += 1
        ticket.block, ticket.may_start_at = self._block, opens_at
        self._on_change()
        return True

    def wait_s(self, ticket: GateTicket, deadline: float = math.inf) -> float:
        """Return how long `ticket` has to wait from now, in seconds; it may start if that is 0 or less.

        Call it again after the wait: the gate may have closed in the meantime.  Waits are spread over the time left
        before `deadline`, and exceed it only if the gate stays closed until after it.
        """
        now = self._clock()
        if ticket.block != self._block:
            ticket.block = self._block
            if now < self._opens_at:
                spread_s = max(0.0, min(self._spread_s, (deadline - self._opens_at) / 2))
                ticket.may_start_at = max(ticket.may_start_at, self._opens_at + self._rng.uniform(0, spread_s))
        return ticket.may_start_at - now
