"""How a job ends before all of its items have an outcome: canceled or expired."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from batchray.config import Settings


class Ending(NamedTuple):
    """How a job ends early; `of_items` are the status, stop reason and error of its items without an outcome."""

    status: str
    stop_reason: str
    of_items: tuple[str, str, Mapping[str, str] | None]


CANCELED = Ending("cancelled", "cancelled", ("canceled", "cancelled", None))


def expired(settings: Settings) -> Ending:
    """Return the ending of a job whose deadline has passed."""
    message = f"not done by its job's deadline, {settings.job_deadline_s:g} s after the job was made"
    return Ending("expired", "error", ("expired", "error", {"type": "job_expired", "message": message}))


def given_up(reason: str) -> Ending:
    """Return the ending of a single request whose provider does not answer."""
    error = {"type": "provider_unavailable", "message": reason}
    return Ending("failed", "error", ("errored", "llm_api_error", error))


def out_of_turn(limit_s: float) -> Ending:
    """Return the ending of a single request that other requests to its agent have kept from its start."""
    message = f"other requests kept it from its agent until its deadline, {limit_s:g} s"
    error = {"type": "deadline_exceeded", "message": message}
    return Ending("failed", "error", ("errored", "error", error))
