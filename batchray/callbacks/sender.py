"""Sends the callbacks of an outbox, and schedules the next attempt after a failure."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import NamedTuple

from batchray.callbacks.base import CallbackResponse, Delivery, DeliveryAttempt, Outbox, Post
from batchray.callbacks.webhook import Signer
from batchray.errors import ConfigError

logger = logging.getLogger(__name__)

DELAYS_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""The waits between ten attempts over three days (75.6 hours).

A receiver that was restarting gets its callback within minutes; one that failed on Friday can be repaired on Monday.
Source: the example of the Standard Webhooks specification 1.0.0, "Deliverability and reliability".
"""

_PAGE, _MAX_PAGE = 64, 4096
_MIN_SLEEP_S = 1.0  # the longest delay of a delivery that became due while all slots were busy
_MAX_SLEEP_S = 60.0  # the wall clock may be changed during a sleep
_OUTBOX_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The waits between attempts, in seconds; there is one more attempt than `delays_s`.

    Each wait varies by a fraction of up to `jitter` in both directions, so that callbacks delayed by one outage do not
    return together.  Raises ConfigError for a negative or infinite delay.
    """

    delays_s: tuple[float, ...] = DELAYS_S
    jitter: float = 0.2
    max_asked_s: float = 24 * 3600.0
    """The longest wait that a receiver may ask for: a day, like the longest delay."""

    def __post_init__(self) -> None:
        for delay_s in self.delays_s:
            if not 0 <= delay_s < math.inf:
                raise ConfigError(f"callback delay {delay_s!r}: it must be a number of seconds, 0 or more")

    def wait_s(self, n_attempts: int, rng: random.Random, asked_s: float | None = None) -> float | None:
        """Return the wait after the failed attempt number `n_attempts`, in seconds; None if it was the last.

        The wait is at least `asked_s`, which the receiver asks for, up to `max_asked_s`.
        """
        if n_attempts > len(self.delays_s):
            return None
        wait_s = self.delays_s[n_attempts - 1] * rng.uniform(1 - self.jitter, 1 + self.jitter)
        if asked_s is None:
            return wait_s
        return max(wait_s, min(asked_s, self.max_asked_s) * rng.uniform(1, 1 + self.jitter))


class _Sending(NamedTuple):
    receiver: str
    task: asyncio.Task[None]


class CallbackSender:
    """Sends the due callbacks of an outbox, from `run` until `close`.

    Callbacks are sent at least once: an attempt is recorded after it was made, and after a crash between the two it is
    repeated.  Receivers recognise a repetition by its `webhook-id`.  At most `max_in_flight` attempts run at once, and
    at most `max_per_receiver` to one host and port, so that a slow receiver does not block the others.
    `clock` gives Unix time.  All methods belong to one event loop.
    """

    def __init__(
        self,
        outbox: Outbox,
        transport: Post,
        *,
        signer: Signer | None = None,
        schedule: Schedule | None = None,
        max_in_flight: int = 16,
        max_per_receiver: int = 4,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._outbox, self._transport = outbox, transport
        self._signer, self._schedule = signer or Signer(), schedule or Schedule()
        self._max_in_flight, self._max_per_receiver = max_in_flight, max_per_receiver
        self._clock, self._sleep, self._rng = clock, sleep, rng or random.Random()
        self._in_flight: dict[
            str, _Sending
        ] = {}  # by webhook id: a callback for a job's next end does not wait for the one before
        self._woken = asyncio.Event()
        self._is_closed = False

    async def run(self) -> None:
        """Send due callbacks until `close`, sleeping in between.  Retries if the outbox fails."""
        while not self._is_closed:
            self._woken.clear()  # before the query: a row added during it wakes the loop again
            try:
                await self._start_due()
                sleep_s = self._sleep_s(await self._outbox.next_due_at())
            except Exception as error:  # noqa: BLE001  # otherwise no callback would be sent any more
                logger.error("callbacks: the outbox failed: %s; asking again in %g s", error, _OUTBOX_RETRY_S)
                sleep_s = _OUTBOX_RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(sleep_s):
                    await self._woken.wait()

    def wake(self) -> None:
        """Check the outbox now: a row was added."""
        self._woken.set()

    async def close(self, grace_s: float = 5.0) -> None:
        """Start no more attempts, and end `run`.

        Attempts in progress have `grace_s` seconds to end.  Then they are cancelled and not recorded; the next sender
        of this outbox repeats them.
        """
        self._is_closed = True
        self._woken.set()
        if tasks := [sending.task for sending in self._in_flight.values()]:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._transport.close()

    def _sleep_s(self, next_at: float | None) -> float:
        if next_at is None:
            return _MAX_SLEEP_S
        wait_s = next_at - self._clock()
        # Due but not started: in progress, or no slot is free.  The end of an attempt wakes the loop, so do not spin.
        return min(wait_s, _MAX_SLEEP_S) if wait_s > 0 else _MIN_SLEEP_S

    async def _start_due(self) -> None:
        """Start due deliveries while slots are free.  Reads more rows if busy receivers fill the first page."""
        limit = _PAGE
        while True:
            # before the query: a delivery that ends during it is in the page but no longer due
            known = set(self._in_flight)
            page = await self._outbox.due(self._clock(), limit)
            for delivery in page:
                if delivery.webhook_id not in known:
                    self._start(delivery)
            if len(page) < limit or limit >= _MAX_PAGE or len(self._in_flight) >= self._max_in_flight:
                return
            limit *= 4

    def _start(self, delivery: Delivery) -> None:
        receiver = _receiver_of(delivery.url)
        n_to_receiver = sum(sending.receiver == receiver for sending in self._in_flight.values())
        is_full = len(self._in_flight) >= self._max_in_flight or n_to_receiver >= self._max_per_receiver
        if not is_full and not self._is_closed:
            task = asyncio.create_task(self._deliver(delivery))
            self._in_flight[delivery.webhook_id] = _Sending(receiver, task)
            task.add_done_callback(partial(self._on_sent, delivery.webhook_id))

    def _on_sent(self, webhook_id: str, _task: asyncio.Task[None]) -> None:
        del self._in_flight[webhook_id]
        self._woken.set()

    async def _deliver(self, delivery: Delivery) -> None:
        """Make one attempt and record it.  If the outbox fails, the record is retried, never the POST."""
        attempt = await self._attempt(delivery)
        _log(delivery, attempt)
        while True:
            try:
                return await self._outbox.record(delivery, attempt)
            except Exception as error:  # noqa: BLE001  # without the record it would be sent again at once
                logger.error("job %s: its callback's attempt could not be recorded: %s", delivery.job_id, error)
            await self._sleep(_OUTBOX_RETRY_S)

    async def _attempt(self, delivery: Delivery) -> DeliveryAttempt:
        sent_at = self._clock()
        headers = self._signer.headers(delivery.webhook_id, sent_at, delivery.payload)
        try:
            response = await self._transport.post(delivery.url, delivery.payload, headers)
        except Exception as error:  # noqa: BLE001  # an unexpected error of one callback must not stop the others
            # Not the error's text, which may hold the URL.
            response = CallbackResponse(None, f"the attempt failed in an unexpected way ({type(error).__name__})")
        return self._to_attempt(delivery.n_attempts + 1, datetime.fromtimestamp(sent_at, UTC), response)

    def _to_attempt(self, n_attempts: int, sent_at: datetime, response: CallbackResponse) -> DeliveryAttempt:
        """Return the result of attempt number `n_attempts`, with the time of the next one."""
        if response.error is None or response.status_code == HTTPStatus.GONE:
            return DeliveryAttempt(sent_at, response.status_code, response.error, None)
        wait_s = self._schedule.wait_s(n_attempts, self._rng, response.retry_after_s)
        if wait_s is None:
            error = f"{response.error}; given up after {n_attempts} attempt{'s' * (n_attempts > 1)}"
            return DeliveryAttempt(sent_at, response.status_code, error, None)
        return DeliveryAttempt(sent_at, response.status_code, response.error, self._clock() + wait_s)


def _receiver_of(url: str) -> str:
    """Return a URL's host and port.  Accepts any text, because one bad row must not stop the others."""
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()


def _log(delivery: Delivery, attempt: DeliveryAttempt) -> None:
    """Log an attempt, without its URL, which may hold a password or a token."""
    extra = {"job_id": delivery.job_id}
    if attempt.error is None:
        logger.info("job %s: callback sent, status %s", delivery.job_id, attempt.status_code, extra=extra)
    elif attempt.next_at is None:
        logger.error("job %s: callback failed: %s", delivery.job_id, attempt.error, extra=extra)
    else:
        message = "job %s: callback failed at attempt %d, to be tried again: %s"
        logger.warning(message, delivery.job_id, delivery.n_attempts + 1, attempt.error, extra=extra)
