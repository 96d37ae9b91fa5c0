"""When failures pause a job.  Pure: outcomes and times are arguments.

A failure that all requests of a provider share (a wrong key, an unknown model, an empty account) is held back at first,
because it says nothing about its request.  A later success of that provider shows that the request itself was at fault:
then the outcome is recorded.  Many in a row pause the job, and what was held is forgotten: those requests run again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, TypeVar

Outcome = TypeVar("Outcome")

_ENOUGH_OUTCOMES = 100


class SharedFailures(Generic[Outcome]):
    """The outcomes held back, by provider and kind of failure: fewer than `max_in_a_row` of each."""

    def __init__(self, max_in_a_row: int) -> None:
        self._max_in_a_row = max_in_a_row
        self._held: dict[str, dict[str, list[tuple[float, Outcome]]]] = {}

    def __len__(self) -> int:
        return sum(len(held) for kinds in self._held.values() for held in kinds.values())

    def hold(self, provider: str, kind: str, outcome: Outcome, ended_at: float) -> bool:
        """Hold an outcome back; return whether it completes a row that pauses the job."""
        held = self._held.setdefault(provider, {}).setdefault(kind, [])
        held.append((ended_at, outcome))
        return len(held) >= self._max_in_a_row

    def n_in_a_row(self, provider: str) -> int:
        """Return the length of a provider's longest row."""
        return max((len(held) for held in self._held.get(provider, {}).values()), default=0)

    def end_rows(self, provider: str, answered_after: float = math.inf) -> list[Outcome]:
        """Return a provider's outcomes that ended before `answered_after`, and hold them no more.

        Give the start of an attempt that succeeded.  Its end would prove too much: a provider whose key is revoked may
        still complete answers that it began before.
        """
        ended: list[Outcome] = []
        for kind, held in list(self._held.get(provider, {}).items()):
            ended += [outcome for ended_at, outcome in held if ended_at <= answered_after]
            self._held[provider][kind] = [each for each in held if each[0] > answered_after]
        return ended

    def take_all(self) -> list[Outcome]:
        """Return all outcomes, and hold none any more."""
        return [outcome for provider in list(self._held) for outcome in self.end_rows(provider)]


def is_beyond(limit: str, counts: Mapping[str, int], total: int) -> bool:
    """Return whether a run of a job has more failures than a limit such as `25` or `5%`.

    `counts` are the outcomes of this run by status, `total` the requests that it had to run.  A percentage is judged
    once 100 requests, or half of a smaller batch, have an outcome.
    """
    n_failed, n_done = counts["errored"], counts["errored"] + counts["succeeded"]
    if not limit.endswith("%"):
        return n_failed > int(limit)
    is_enough = n_done >= min(_ENOUGH_OUTCOMES, math.ceil(total / 2))
    return is_enough and n_failed > n_done * float(limit[:-1]) / 100
