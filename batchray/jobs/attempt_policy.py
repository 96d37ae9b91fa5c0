"""The policy after an attempt whose process crashed: retry, retry in isolation, or give up.

A pure function of the item's history and the error.  Attempts that end in any other way are not retried here: the model
client retries 429 and 5xx within the attempt, and every other failure is the item's outcome.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from batchray.errors import DeadlineExceededError, RequestError, WorkerDiedError

# Crashes that other requests caused in the shared process do not count towards `max_attempts`; these are their limits,
# in one run of the job.
_MAX_COLLATERAL_CRASHES = 20
_ISOLATE_AFTER_COLLATERAL_CRASHES = 12


@dataclass(frozen=True, slots=True)
class AttemptHistory:
    """The attempts at one item, those of earlier runs of the job included.

    `attempt` is the number of the latest one.  `blamed_crashes` are crashes of a process that this item may have
    caused, `collateral_crashes` those that another request caused; `collateral_before` of the latter happened in
    earlier runs.  `left_s` is what is left of the item's deadline.
    """

    attempt: int
    blamed_crashes: int
    collateral_crashes: int
    collateral_before: int
    left_s: float

    def with_attempt(self) -> AttemptHistory:
        """Return the history with one more attempt."""
        return replace(self, attempt=self.attempt + 1)

    def with_crash(self, *, is_suspect: bool, ran_s: float) -> AttemptHistory:
        """Return the history after the latest attempt ran for `ran_s` seconds and its process crashed."""
        return replace(
            self,
            blamed_crashes=self.blamed_crashes + is_suspect,
            collateral_crashes=self.collateral_crashes + (not is_suspect),
            left_s=max(self.left_s - ran_s, 0.0),
        )


@dataclass(frozen=True, slots=True)
class Retry:
    """Run an attempt in a process that it may share."""


@dataclass(frozen=True, slots=True)
class RetryIsolated:
    """Run an attempt in a process that no other request shares."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Run no more attempts: the item's outcome is this error."""

    error: RequestError


NextStep = Retry | RetryIsolated | GiveUp


def next_step(history: AttemptHistory, error: WorkerDiedError | None, max_attempts: int) -> NextStep:
    """Return what to do next with an item; `error` is that of its latest attempt, None before the first of this run.

    Isolated are suspects, so that they can harm no other request, and items that lost many attempts to others.
    """
    collateral = history.collateral_crashes - history.collateral_before
    if error is not None:
        if history.blamed_crashes >= max_attempts or collateral >= _MAX_COLLATERAL_CRASHES:
            return GiveUp(RequestError("worker_died", error.reason))
        if history.left_s <= 0:
            message = f"its time was used up when {error.reason}"
            return GiveUp(DeadlineExceededError("deadline_exceeded", message))
    if history.blamed_crashes > 0 or collateral >= _ISOLATE_AFTER_COLLATERAL_CRASHES:
        return RetryIsolated()
    return Retry()
