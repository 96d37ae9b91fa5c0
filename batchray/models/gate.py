"""The gate of one provider on one event loop: calls wait here while the provider takes none, or fewer at once."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from batchray.models.gate_policy import Cause, GatePolicy
from batchray.schema import ProviderWait


class GateTimeoutError(Exception):
    """A call has waited for a shut provider for as long as it may."""


class GateFailure(NamedTuple):
    """A failed attempt: its cause, the type and words of its error, and the wait that the provider asks for."""

    cause: Cause
    type: str
    reason: str
    wait_s: float | None = None


class Caller:
    """One model call at the gate, with all its attempts."""

    __slots__ = ("has_answer", "is_first", "n_failures", "n_outages", "n_refusals", "n_seen", "waited_s")

    def __init__(self) -> None:
        self.has_answer = False
        """Whether the provider has accepted the newest attempt."""
        self.is_first = False
        """Whether it has waited before, and starts before others."""
        self.n_refusals = 0
        """How often it was refused without being told how long to wait."""
        self.n_failures = 0
        """Failures that no state of the provider explains."""
        self.n_outages = 0
        """How often the provider went away while it worked on this call."""
        self.n_seen = -1
        """The gate's number of openings at the last of them."""
        self.waited_s = 0.0
        """How long it has waited while the provider was shut, in seconds."""


class _Waiter:
    """A caller in the queue, until its future has the number of its attempt.

    `until_shut_s` is how long the provider may have been shut in all before the caller gives up.
    """

    __slots__ = ("future", "until_shut_s")

    def __init__(self, until_shut_s: float) -> None:
        self.until_shut_s = until_shut_s
        self.future: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class ProviderGate:
    """Starts the calls to one provider, at once or when its `GatePolicy` allows.

    Waiting calls start in their order; one that was refused comes before all others.  No call waits longer than
    `max_wait_s` for a shut provider.  `on_change` is called when the provider is shut, opened, slowed or sped up.
    `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
        max_wait_s: float = math.inf,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._policy, self._clock, self._sleep = GatePolicy(clock, rng or random.Random()), clock, sleep
        self._max_wait_s, self._on_change = max_wait_s, on_change
        self._queue: deque[_Waiter] = deque()
        self._timer: asyncio.Task[None] | None = None
        self._wakes_at = math.inf
        self._n_asleep = 0
        self.newest_failure = GateFailure(Cause.OWN, "", "")
        """The newest failed attempt of any caller."""

    @property
    def is_shut(self) -> bool:
        """Whether calls are held back until one of them is answered."""
        return self._policy.is_shut

    @property
    def n_rounds(self) -> int:
        """How many calls have failed one after the other, each begun after the one before it had failed."""
        return self._policy.n_rounds

    def try_begin(self) -> int:
        """Start an attempt now and return its number; 0 if it has to wait, with `begin`."""
        policy = self._policy
        if policy.is_open or (not self._queue and policy.wait_s() <= 0):
            return policy.begin()
        return 0

    async def begin(self, caller: Caller) -> int:
        """Wait until an attempt may start, and return its number.  Raises GateTimeoutError."""
        _, before_s = self._policy.shut_s()
        waiter = _Waiter(before_s + self._max_wait_s - caller.waited_s)
        if caller.is_first:
            self._queue.appendleft(waiter)
        else:
            self._queue.append(waiter)
        self._start_next()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        finally:
            caller.waited_s += self._policy.shut_s()[1] - before_s

    async def sleep(self, caller: Caller, wait_s: float) -> None:
        """Wait for as long as the provider has asked this caller to.  Raises GateTimeoutError if that is too long."""
        if caller.waited_s + wait_s > self._max_wait_s:
            raise GateTimeoutError
        self._n_asleep += 1
        try:
            await self._sleep(wait_s)
            caller.waited_s += wait_s
        finally:
            self._n_asleep -= 1

    def answered(self, number: int) -> None:
        """The provider has accepted a call: the first part of its answer is here."""
        if self._policy.is_open:
            self._policy.answered(number)
            return
        with self._changing():
            self._policy.answered(number)

    def end(self, *, is_success: bool) -> None:
        """An attempt has ended."""
        if self._policy.is_open:
            self._policy.end(is_success=is_success)
            return
        with self._changing():
            self._policy.end(is_success=is_success)

    def failed(self, number: int, failure: GateFailure, caller: Caller) -> None:
        """An attempt has failed."""
        self.newest_failure = failure
        with self._changing():
            self._policy.failed(number, failure.cause, failure.wait_s, caller)

    def count_outage(self, caller: Caller) -> int:
        """Return how often the provider went away while it worked on this call; each outage counts once."""
        if caller.n_seen != self._policy.n_openings:
            caller.n_seen = self._policy.n_openings
            caller.n_outages += 1
        return caller.n_outages

    def status(self, provider: str, endpoint: str = "") -> ProviderWait | None:
        """Return what holds calls to this provider back; None if nothing does.  See `ProviderWait`."""
        policy, n_waiting = self._policy, len(self._queue)
        if policy.is_shut:
            n_waiting += self._n_asleep
        elif not policy.is_slowed or not n_waiting:  # one refused call that sleeps holds no other back
            return None
        wait_s, (since_s, total_s) = policy.wait_s(), policy.shut_s()
        return ProviderWait(
            provider=provider,
            endpoint=endpoint,
            kind="rate_limited" if self.newest_failure.type == "rate_limited" else "unavailable",
            reason=self.newest_failure.reason,
            wait_s=max(wait_s, 0.0) if wait_s < math.inf else 0.0,
            n_waiting=n_waiting,
            since_s=since_s,
            total_s=total_s,
            has_answered=policy.has_answered,
        )

    def close(self) -> None:
        """Start nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Tell of a change that this block makes, and start the calls that may start after it."""
        before = self._state()
        yield
        if self._queue:
            self._start_next()
        if self._state() != before:
            self._on_change()

    def _state(self) -> tuple[Any, ...]:
        return self._policy.is_shut, self._policy.is_slowed

    def _start_next(self) -> None:
        """Start the calls that may start now, and set the timer for the next."""
        wait_s = math.inf
        while self._queue and (wait_s := self._policy.wait_s()) <= 0:
            if not (future := self._queue.popleft().future).done():  # otherwise its task is being cancelled
                future.set_result(self._policy.begin())
        if not self._queue:
            return
        if self._max_wait_s < math.inf and self._policy.is_shut:
            wait_s = min(wait_s, self._give_up_late())
        wakes_at = self._clock() + wait_s
        if wakes_at < self._wakes_at or self._timer is None:
            self._set_timer(wait_s, wakes_at)

    def _set_timer(self, wait_s: float, wakes_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wakes_at = wakes_at
        if wait_s < math.inf:
            self._timer = asyncio.ensure_future(self._wake(wait_s))

    async def _wake(self, wait_s: float) -> None:
        await self._sleep(wait_s)
        self._timer, self._wakes_at = None, math.inf
        self._start_next()

    def _give_up_late(self) -> float:
        """End the waits that have lasted too long, or will; return when the next one does, in seconds from now."""
        _, shut_s = self._policy.shut_s()
        opens_in_s = self._policy.wait_s()
        opening_s = shut_s + (opens_in_s if opens_in_s < math.inf else 0.0)
        for waiter in [waiter for waiter in self._queue if waiter.until_shut_s <= opening_s]:
            self._queue.remove(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(GateTimeoutError())
        return min((waiter.until_shut_s for waiter in self._queue), default=math.inf) - shut_s

    def _withdraw(self, waiter: _Waiter) -> None:
        """Forget a caller that was cancelled; it may have been started in the same moment."""
        if waiter in self._queue:
            self._queue.remove(waiter)
        elif not waiter.future.cancelled() and waiter.future.exception() is None:
            self.end(is_success=False)
