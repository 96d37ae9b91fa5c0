"""The next step after an attempt whose process crashed, row by row."""

from __future__ import annotations

import pytest

from batchray.errors import WorkerDiedError
from batchray.jobs.attempt_policy import AttemptHistory, GiveUp, NextStep, Retry, RetryIsolated, next_step

MAX_ATTEMPTS = 3
CRASH = WorkerDiedError("killed by signal 9")


def history(blamed: int = 0, collateral: int = 0, collateral_before: int = 0, left_s: float = 60.0) -> AttemptHistory:
    return AttemptHistory(blamed + collateral, blamed, collateral, collateral_before, left_s)


@pytest.mark.parametrize(
    ("past", "error", "step"),
    [
        # The first attempt of a run: it always takes place, isolated if the item is a suspect.
        (history(), None, Retry()),
        (history(blamed=1), None, RetryIsolated()),
        (history(blamed=MAX_ATTEMPTS), None, RetryIsolated()),
        (history(collateral=19, collateral_before=19), None, Retry()),
        (history(left_s=0.0), None, Retry()),
        # After a crash that the item may have caused.
        (history(blamed=1), CRASH, RetryIsolated()),
        (history(blamed=2, collateral=5), CRASH, RetryIsolated()),
        (history(blamed=3), CRASH, "worker_died"),
        (history(blamed=4), CRASH, "worker_died"),
        # After a crash that another request caused.
        (history(collateral=1), CRASH, Retry()),
        (history(collateral=11), CRASH, Retry()),
        (history(collateral=12), CRASH, RetryIsolated()),
        (history(collateral=19), CRASH, RetryIsolated()),
        (history(collateral=20), CRASH, "worker_died"),
        # Only crashes of this run of the job count as collateral.
        (history(collateral=30, collateral_before=19), CRASH, Retry()),
        (history(collateral=31, collateral_before=19), CRASH, RetryIsolated()),
        (history(collateral=39, collateral_before=19), CRASH, "worker_died"),
        # The deadline, which a limit of attempts comes before.
        (history(blamed=1, left_s=0.0), CRASH, "deadline_exceeded"),
        (history(collateral=1, left_s=0.0), CRASH, "deadline_exceeded"),
        (history(blamed=3, left_s=0.0), CRASH, "worker_died"),
        (history(blamed=1, left_s=0.001), CRASH, RetryIsolated()),
    ],
)
def test_the_next_step_follows_from_history_and_error(
    past: AttemptHistory, error: WorkerDiedError | None, step: NextStep | str
) -> None:
    found = next_step(past, error, MAX_ATTEMPTS)
    assert (found.error.type if isinstance(found, GiveUp) else found) == step


@pytest.mark.parametrize(
    ("past", "message"),
    [
        (history(blamed=3), "killed by signal 9"),
        (history(blamed=1, left_s=0.0), "its time was used up when killed by signal 9"),
    ],
)
def test_an_item_that_is_given_up_names_the_last_crash(past: AttemptHistory, message: str) -> None:
    step = next_step(past, CRASH, MAX_ATTEMPTS)
    assert isinstance(step, GiveUp)
    assert step.error.message == message


def test_a_crash_counts_as_blamed_or_collateral_and_takes_its_time() -> None:
    past = history(left_s=10.0).with_attempt().with_crash(is_suspect=True, ran_s=4.0)
    assert past == AttemptHistory(1, 1, 0, 0, 6.0)
    past = past.with_attempt().with_crash(is_suspect=False, ran_s=7.0)
    assert past == AttemptHistory(2, 1, 1, 0, 0.0)
