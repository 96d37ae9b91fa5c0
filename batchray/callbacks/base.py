"""What the sender, the outbox that it empties and the transport that it sends over tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Delivery:
    """A row of the outbox that is due: what to send, and where.  `n_attempts` were made so far.

    `completed_at`, as the outbox writes it, is that of the end it tells of, and `webhook_id` belongs to that end: a job
    that is retried ends again, and tells of it under another.
    """

    job_id: str
    completed_at: str
    webhook_id: str
    url: str
    payload: bytes
    n_attempts: int


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """What became of one attempt.

    `sent_at` is aware UTC.  `status_code` is None where no answer came; `error` is one sentence, None for a success.
    `next_at` is the Unix time of the next attempt; with None nothing more is tried.
    """

    sent_at: datetime
    status_code: int | None
    error: str | None
    next_at: float | None


class Outbox(Protocol):
    """The callbacks that are not yet settled: one row a job, kept until an attempt without a `next_at` is recorded."""

    async def due(self, now: float, limit: int) -> list[Delivery]:
        """Return at most `limit` rows whose time is `now` (Unix time) or earlier, those that wait longest first."""
        ...

    async def record(self, delivery: Delivery, attempt: DeliveryAttempt) -> None:
        """Count an attempt, keep it for whoever looks at the job, and set when the row is due again, or remove it.

        Where the job was opened again meanwhile, the row is gone, or another one's: then nothing is to be kept.
        """
        ...

    async def next_due_at(self) -> float | None:
        """Return the earliest time of all rows, those that are being sent among them; None when there are no rows."""
        ...


class CallbackResponse(NamedTuple):
    """What one POST came to.  `error` is one sentence that names no URL, and None for a status of 2xx only."""

    status_code: int | None
    error: str | None
    retry_after_s: float | None = None
    """The wait that the receiver asks for."""


class Post(Protocol):
    """Sends one POST; see `transport.WebhookTransport`."""

    async def post(self, url: str, payload: bytes, headers: dict[str, str]) -> CallbackResponse:
        """Send and return what it came to; what the receiver or the network does is never an exception."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
