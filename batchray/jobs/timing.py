"""When a job was accepted, when its first item started, when its first token came, and when it expires."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from batchray.store import JobRecord


class JobTiming:
    """The moments that a job's durations are counted from, on this process's monotonic clock, in nanoseconds.

    `opened_at` is when it was created or last reopened; it expires `deadline_s` seconds later.  `is_resumed` says that
    some of its items have run before.
    """

    def __init__(
        self,
        record: JobRecord,
        opened_at: str,
        deadline_s: float,
        *,
        is_resumed: bool,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._record, self._is_resumed, self._clock = record, is_resumed, clock
        self._expires_ns = clock() + deadline_s * 1e9 - age_ns(opened_at)
        self._accepted_ns = clock() - age_ns(record.created_at)
        self._first_start_ns: int | None = None
        self._first_token_ns: int | None = None

    def left_s(self) -> float:
        """Return the seconds until the job expires; negative after that."""
        return (self._expires_ns - self._clock()) / 1e9

    def add_start(self, started_ns: int) -> int:
        """Count the start of an item; return how long the item had waited for it since the job was accepted."""
        if self._first_start_ns is None or started_ns < self._first_start_ns:
            self._first_start_ns = started_ns
        return max(started_ns - self._accepted_ns, 0)

    def add_first_token(self, token_ns: int) -> None:
        """Count the first token of an item."""
        if self._first_token_ns is None or token_ns < self._first_token_ns:
            self._first_token_ns = token_ns

    def durations(self) -> tuple[int | None, int]:
        """Return time to first token and total duration, in ns from the first item's start.

        The total of a resumed job is by the wall clock, because a monotonic clock restarts with its machine.
        """
        now = self._clock()
        started = self._first_start_ns if self._first_start_ns is not None else now
        total = age_ns(self._record.started_at or self._record.created_at) if self._is_resumed else now - started
        ttft = self._first_token_ns - started if self._first_token_ns is not None else None
        return ttft, total


def age_ns(timestamp: str) -> int:
    """Return how long ago a timestamp of the store was, in nanoseconds by the wall clock; 0 for one in the future."""
    age = datetime.now(UTC) - datetime.fromisoformat(timestamp)
    return max(int(age.total_seconds() * 1e9), 0)
