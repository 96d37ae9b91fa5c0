"""Types and protocols shared by the sender, its outbox and its transport."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Delivery:
    """A due row of the outbox: what to send, and where.  `n_attempts` were made before.

    `completed_at` is the time of the job's end that the callback reports, in the outbox's format.  `webhook_id` belongs
    to that end: a job that is retried ends again, with a new id.
    """

    job_id: str
    completed_at: str
    webhook_id: str
    url: str
    payload: bytes
    n_attempts: int


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """The result of one attempt.

    `sent_at` is aware UTC.  `status_code` is None if there was no response; `error` is a sentence, None for a success.
    `next_at` is the Unix time of the next attempt, or None if there is none.
    """

    sent_at: datetime
    status_code: int | None
    error: str | None
    next_at: float | None


class Outbox(Protocol):
    """The callbacks still to deliver: one row per job, removed by an attempt without a `next_at`."""

    async def due(self, now: float, limit: int) -> list[Delivery]:
        """Return at most `limit` rows that are due at `now` (Unix time), the longest due first."""
        ...

    async def record(self, delivery: Delivery, attempt: DeliveryAttempt) -> None:
        """Record an attempt in the job, and set when the row is due again, or remove it.

        If the job was reopened in the meantime, the row is gone or belongs to another end: then nothing is recorded.
        """
        ...

    async def next_due_at(self) -> float | None:
        """Return the earliest due time of all rows, including those being sent; None if there are no rows."""
        ...


class CallbackResponse(NamedTuple):
    """The result of one POST.  `error` is one sentence without the URL; None only for a status of 2xx."""

    status_code: int | None
    error: str | None
    retry_after_s: float | None = None
    """The wait that the receiver asks for, in seconds."""


class Post(Protocol):
    """Sends one POST; see `transport.WebhookTransport`."""

    async def post(self, url: str, payload: bytes, headers: dict[str, str]) -> CallbackResponse:
        """Send, and return the result; no behaviour of the receiver or the network raises."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
