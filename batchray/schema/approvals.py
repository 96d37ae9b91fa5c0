"""Rules for answers to tool calls that wait for the caller."""

from __future__ import annotations

from collections.abc import Iterable

from batchray.errors import ApprovalError


def check_all_answered(answered: Iterable[str], waiting: Iterable[str]) -> None:
    """Raise ApprovalError unless the answered tool calls are exactly those that wait.  Both are tool call ids."""
    answered, waiting = set(answered), set(waiting)
    if unknown := answered - waiting:
        reason = f"no tool call {min(unknown)!r} of the same step waits for an answer"
        raise ApprovalError("no_pending_approval", f"{reason}; answer each run in a request of its own")
    if missing := waiting - answered:
        reason = f"the tool call {min(missing)!r} of the same step waits too; answer all of them in one request"
        raise ApprovalError("incomplete_approval", reason)
