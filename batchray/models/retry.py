"""Limits and retries of one model call."""

from __future__ import annotations

import random
from dataclasses import dataclass

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
