"""The worker that empties the outbox of callbacks: when to send, and what an answer means for the next attempt."""

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

A receiver that was being restarted hears within minutes, and one that failed on Friday is mended on Monday.  Source:
the example of the Standard Webhooks specification 1.0.0, "Deliverability and reliability".
"""

_PAGE, _MAX_PAGE = 64, 4096
_MIN_REST_S = 1.0  # what became due while everything was busy starts this late at worst
_MAX_REST_S = 60.0  # the wall clock may be set while we sleep
_OUTBOX_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The waits between attempts: one more attempt than `delays_s` (seconds) are made.

    Each wait is spread by `jitter` of itself to both sides, so that the callbacks of an outage do not come back as one.
    Raises ConfigError for a delay that is no time.
    """

    delays_s: tuple[float, ...] = DELAYS_S
    jitter: float = 0.2
    max_asked_s: float = 24 * 3600.0
    """The longest wait that a receiver may ask for; a day, as the longest of our own."""

    def __post_init__(self) -> None:
        for delay_s in self.delays_s:
            if not 0 <= delay_s < math.inf:
                raise ConfigError(f"callback delay {delay_s!r}: it has to be a number of seconds, 0 or more")

    def wait_s(self, n_attempts: int, rng: random.Random, asked_s: float | None = None) -> float | None:
        """Return the wait after the `n_attempts`-th attempt has failed, in seconds; None when it was the last.

        It is never shorter than `asked_s`, what the receiver asks for, up to `max_asked_s`.
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
    """Sends what is due in an outbox, from `run` until `close`.

    Callbacks are sent at least once: an attempt is recorded after it, and a process that dies between the two sends
    again.  The `webhook-id` is then the same, and tells the receiver.  At most `max_in_flight` attempts
    are under way, and `max_per_receiver` to one host and port, so that one that is slow leaves places to the others.
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
        self._in_flight: dict[str, _Sending] = {}  # by webhook id: a job's next end does not wait for the one before
        self._woken = asyncio.Event()
        self._is_closed = False

    async def run(self) -> None:
        """Send what is due, and sleep until more is, until `close`.  Failures of the outbox are waited out."""
        while not self._is_closed:
            self._woken.clear()  # before looking: what comes in meanwhile wakes us again
            try:
                await self._start_due()
                rest_s = self._rest_s(await self._outbox.next_due_at())
            except Exception as error:  # noqa: BLE001  # nobody would send callbacks any more
                logger.error("callbacks: the outbox failed: %s; asking again in %g s", error, _OUTBOX_PAUSE_S)
                rest_s = _OUTBOX_PAUSE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._woken.wait()

    def wake(self) -> None:
        """Look into the outbox now: something was put there."""
        self._woken.set()

    async def close(self, grace_s: float = 5.0) -> None:
        """Start nothing more, and let `run` return.

        Attempts under way have `grace_s` seconds to end; then they are canceled, stay unrecorded, and are made again by
        the next sender of this outbox.
        """
        self._is_closed = True
        self._woken.set()
        if tasks := [sending.task for sending in self._in_flight.values()]:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._transport.close()

    def _rest_s(self, next_at: float | None) -> float:
        if next_at is None:
            return _MAX_REST_S
        wait_s = next_at - self._clock()
        # Due but not started: it is being sent, or has no place.  An attempt's end wakes us, so do not spin.
        return min(wait_s, _MAX_REST_S) if wait_s > 0 else _MIN_REST_S

    async def _start_due(self) -> None:
        """Start what is due and has a place.  Looks further where busy receivers fill the first page."""
        limit = _PAGE
        while True:
            known = set(self._in_flight)  # before asking: what ends meanwhile is in the page, and not due any more
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
            task.add_done_callback(partial(self._ended, delivery.webhook_id))

    def _ended(self, webhook_id: str, _task: asyncio.Task[None]) -> None:
        del self._in_flight[webhook_id]
        self._woken.set()

    async def _deliver(self, delivery: Delivery) -> None:
        """Make one attempt and record it.  While the outbox fails, the record is tried again, and never the POST."""
        attempt = await self._attempt(delivery)
        _log(delivery, attempt)
        while True:
            try:
                return await self._outbox.record(delivery, attempt)
            except Exception as error:  # noqa: BLE001  # unrecorded, it would be sent again at once
                logger.error("job %s: its callback's attempt could not be recorded: %s", delivery.job_id, error)
            await self._sleep(_OUTBOX_PAUSE_S)

    async def _attempt(self, delivery: Delivery) -> DeliveryAttempt:
        sent_at = self._clock()
        headers = self._signer.headers(delivery.webhook_id, sent_at, delivery.payload)
        try:
            answer = await self._transport.post(delivery.url, delivery.payload, headers)
        except Exception as error:  # noqa: BLE001  # one callback's surprise is not the others'
            # Not the error's text, which may hold the URL.
            answer = CallbackResponse(None, f"the attempt failed in an unexpected way ({type(error).__name__})")
        return self._judged(delivery.n_attempts + 1, datetime.fromtimestamp(sent_at, UTC), answer)

    def _judged(self, n_attempts: int, sent_at: datetime, answer: CallbackResponse) -> DeliveryAttempt:
        """Say what an answer to the `n_attempts`-th attempt means."""
        if answer.error is None or answer.status_code == HTTPStatus.GONE:
            return DeliveryAttempt(sent_at, answer.status_code, answer.error, None)
        wait_s = self._schedule.wait_s(n_attempts, self._rng, answer.retry_after_s)
        if wait_s is None:
            error = f"{answer.error}; given up after {n_attempts} attempt{'s' * (n_attempts > 1)}"
            return DeliveryAttempt(sent_at, answer.status_code, error, None)
        return DeliveryAttempt(sent_at, answer.status_code, answer.error, self._clock() + wait_s)


def _receiver_of(url: str) -> str:
    """Return a URL's host and port; for any text at all, because one bad row must not stop the others."""
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()


def _log(delivery: Delivery, attempt: DeliveryAttempt) -> None:
    """Never the URL: it may hold a password or a token."""
    extra = {"job_id": delivery.job_id}
    if attempt.error is None:
        logger.info("job %s: callback sent, status %s", delivery.job_id, attempt.status_code, extra=extra)
    elif attempt.next_at is None:
        logger.error("job %s: callback failed: %s", delivery.job_id, attempt.error, extra=extra)
    else:
        message = "job %s: callback failed at attempt %d, to be tried again: %s"
        logger.warning(message, delivery.job_id, delivery.n_attempts + 1, attempt.error, extra=extra)
