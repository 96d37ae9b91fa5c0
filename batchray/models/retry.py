"""When to ask a provider again, and how long to wait before it: pure, with the clock and the randomness given."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from batchray.support.backoff import backoff_s


@dataclass(frozen=True, slots=True)
class CallTimeouts:
    """Limits of one attempt at a model call, in seconds.  A call's own deadline cuts all of them."""

    connect_s: float = 10.0
    """To a connection.  A provider that takes longer is down."""
    idle_s: float = 60.0
    """Between two bytes, and to the first one."""
    call_s: float = 600.0
    """The attempt as a whole."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to retry, and the backoff between attempts."""

    max_retries: int = 8
    base_s: float = 0.5
    cap_s: float = 30.0

    def backoff_s(self, n_retries: int, rng: random.Random) -> float:
        """Return the wait before the retry that follows `n_retries` others: 0 to min(cap, base * 2^n) seconds."""
        return backoff_s(n_retries, self.base_s, self.cap_s, rng)


class GateTicket:
    """One call's place at a gate: when it may go, and the block that this was worked out for."""

    __slots__ = ("block", "goes_at")

    def __init__(self) -> None:
        self.block, self.goes_at = 0, -math.inf


class Gate:
    """Holds all calls to one provider back while the provider says that there are too many.

    One a provider and event loop.  The call that was told to wait goes as soon as the gate opens; the others follow at
    random over as long as the gate was closed (`cap_s` seconds at most), so that they do not storm.  `clock` gives
    monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float], rng: random.Random, cap_s: float = 30.0) -> None:
        self._clock, self._rng, self._cap_s = clock, rng, cap_s
        self._opens_at, self._spread_s, self._block = -math.inf, 0.0, 0

    def close(self, wait_s: float, told: GateTicket) -> bool:
        """Let nobody through for `wait_s` seconds, and then `told` first.

        Returns False, and changes nothing, where the gate stays closed for longer already: `told` is then one of many.
        """
        opens_at = self._clock() + wait_s
        if opens_at <= self._opens_at:
            return False
        self._opens_at, self._spread_s = opens_at, min(wait_s, self._cap_s)
        self._block += 1
        told.block, told.goes_at = self._block, opens_at
        return True

    def wait_s(self, turn: GateTicket, deadline: float = math.inf) -> float:
        """Return how long `turn` has to wait from now, in seconds; it may go when that is 0 or less.

        Ask again after the wait: the gate may have closed meanwhile.  A wait is spread over what is left before
        `deadline`, and reaches past it only where the gate itself does.
        """
        now = self._clock()
        if turn.block != self._block:
            turn.block = self._block
            if now < self._opens_at:
                spread_s = max(0.0, min(self._spread_s, (deadline - self._opens_at) / 2))
                turn.goes_at = max(turn.goes_at, self._opens_at + self._rng.uniform(0, spread_s))
        return turn.goes_at - now
