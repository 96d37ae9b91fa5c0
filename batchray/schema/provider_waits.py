"""A provider that holds its callers back, as a lane reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderWait:
    """A provider that takes no calls now, or fewer than are asked for, as seen on one event loop.

    All fields are plain values: `dataclasses.asdict` gives JSON, and `ProviderWait(**data)` reads it.
    """

    provider: str
    """The provider's name."""
    endpoint: str
    """Tells it apart from providers of the same name with another address or key, which other jobs may use."""
    kind: Literal["rate_limited", "unavailable"]
    """`rate_limited`: it asks to wait.  `unavailable`: it is away, or refuses every call."""
    reason: str
    """Its newest failure in one bounded line, without keys."""
    wait_s: float
    """Seconds until the next call may start; 0 if calls start now, but fewer at once."""
    n_waiting: int
    """How many calls wait."""
    since_s: float
    """For how many seconds it has taken no call; 0 if it only takes fewer."""
    total_s: float
    """For how many seconds it has taken no call since the loop began, these included."""
    has_answered: bool
    """Whether it has ever answered a call on this loop."""
