"""The attempts at one model call: when each starts, which failures are tried again, and which end the call."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from batchray.errors import DeadlineExceededError, ModelAPIError, RequestError
from batchray.models.gate import Caller, GateFailure, GateTimeoutError, ProviderGate
from batchray.models.gate_policy import Cause
from batchray.models.provider_errors import TransientError, UnreachableError, with_detail
from batchray.models.retry import RetryPolicy

logger = logging.getLogger(__name__)

T = TypeVar("T")

Held = Callable[[], AbstractContextManager[object]]
"""Given by the caller: a context that is entered while the call waits for its provider."""

# Statuses of a gateway or load balancer, Cloudflare included, without its server, and of an overloaded provider.
_AWAY_STATUSES = frozenset({502, 503, 520, 521, 522, 523, 525, 529, 530})
# A request that crashes its server whenever it is tried would otherwise do so without end.
_MAX_OUTAGES = 8
# Refusals of one call that do not say how long to wait, while other calls are answered.
_MAX_REFUSALS = 40
# A provider that asks for a wait of milliseconds does so again: OpenAI's token limits do.
_MIN_WAIT_S = 0.1
_WARN_S = 60.0


class Attempt(NamedTuple):
    """One attempt at a call: its number at the gate, and when it has to end."""

    caller: Caller
    number: int
    deadline: float
    gate: ProviderGate

    def answered(self) -> None:
        """The provider has accepted the call."""
        self.caller.has_answer = True
        self.gate.answered(self.number)


@dataclass(slots=True)
class _Moved:
    """By how much a wait moves the deadline, in seconds."""

    by_s: float = 0.0


class _Retry(NamedTuple):
    """How long to wait before the next attempt, and whether a state of the provider explains the failed one."""

    wait_s: float
    is_explained: bool


class Attempts:
    """Makes attempts at the calls to one provider until they succeed, fail for good, or reach their limits.

    `name` is the provider's, `clean` removes its keys from a text.  `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        gate: ProviderGate,
        retries: RetryPolicy,
        clean: Callable[[str], str],
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        rng: random.Random,
    ) -> None:
        self._name, self._gate, self._retries, self._clean = name, gate, retries, clean
        self._clock, self._sleep, self._rng = clock, sleep, rng
        self._warned_at = -math.inf

    async def run(self, attempt: Callable[[Attempt], Awaitable[T]], deadline: float, held: Held) -> T:
        """Return the result of the first attempt that succeeds.

        A wait for the provider moves the deadline.  Raises ModelAPIError, and whatever else `attempt` raises.
        """
        gate, caller = self._gate, Caller()
        while True:
            if not (number := gate.try_begin()):
                with self._holding(held) as moved:
                    number = await self._or_give_up(gate.begin(caller))
                deadline += moved.by_s
            is_success = caller.has_answer = False
            try:
                result = await attempt(Attempt(caller, number, deadline, gate))
                is_success = True
                return result
            except TransientError as failure:
                retry = self._plan_retry(failure, number, caller, deadline)
            except RequestError as error:
                self._note(error, number, caller)
                raise
            finally:
                gate.end(is_success=is_success)
            if not retry.is_explained:
                await self._sleep(retry.wait_s)
            elif retry.wait_s > 0:
                with self._holding(held) as moved:
                    await self._or_give_up(gate.sleep(caller, retry.wait_s))
                deadline += moved.by_s

    def _plan_retry(self, failure: TransientError, number: int, caller: Caller, deadline: float) -> _Retry:
        """Report a failure to the gate, and return when to try again.  Raises ModelAPIError if the call ends."""
        cause, was_shut = _cause_of(failure, caller), self._gate.is_shut
        reason = with_detail(str(failure), self._clean(failure.detail))
        self._gate.failed(number, GateFailure(cause, failure.type, reason, failure.retry_after_s), caller)
        if self._gate.is_shut and not was_shut and cause is not Cause.OWN:
            self._log_shut(reason)
        if cause is Cause.ASKED and (failure.status == 429 or self._gate.is_shut):
            return self._after_refusal(failure, caller)
        if cause in (Cause.UNREACHABLE, Cause.AWAY) and self._gate.is_shut:
            n_outages = self._gate.count_outage(caller)
            if n_outages <= max(_MAX_OUTAGES, self._retries.max_retries):
                return _Retry(0.0, is_explained=True)
            raise self._error(failure, f"{failure}; the provider went away {n_outages} times during this call")
        return self._after_failure(failure, caller, deadline)

    def _log_shut(self, reason: str) -> None:
        """Warn of a provider that takes no calls, at most once a minute: a rate limit may shut it every few seconds."""
        is_new = self._clock() >= self._warned_at + _WARN_S
        if is_new:
            self._warned_at = self._clock()
        logger.log(logging.WARNING if is_new else logging.DEBUG, "provider %s takes no calls: %s", self._name, reason)

    def _after_refusal(self, failure: TransientError, caller: Caller) -> _Retry:
        """Wait for as long as the provider asks.  If it does not say how long, the refusals in a row are limited."""
        caller.is_first = True
        if failure.retry_after_s is not None:
            return _Retry(max(failure.retry_after_s, _MIN_WAIT_S), is_explained=True)
        caller.n_refusals += 1
        n_rounds = self._gate.n_rounds
        if n_rounds > self._retries.max_retries:
            raise self._error(failure, f"{failure} after {_attempts(n_rounds)}", is_shared=True)
        if caller.n_refusals > _MAX_REFUSALS:
            raise self._error(failure, f"{failure} after {_attempts(caller.n_refusals)}")
        wait_s = 0.0 if self._gate.is_shut else self._retries.backoff_s(caller.n_refusals - 1, self._rng)
        return _Retry(wait_s, is_explained=True)

    def _after_failure(self, failure: TransientError, caller: Caller, deadline: float) -> _Retry:
        """Try again after a backoff, up to the limit of retries and before the deadline."""
        caller.n_failures += 1
        n_failures, max_retries = caller.n_failures, self._retries.max_retries
        if n_failures > max_retries:
            is_shared = failure.type == "wrong_content_type"  # a page for people: perhaps base_url is wrong
            raise self._error(failure, f"{failure} after {_attempts(n_failures)}", is_shared=is_shared)
        wait_s = failure.retry_after_s or self._retries.backoff_s(n_failures - 1, self._rng)
        if self._clock() + wait_s >= deadline:
            late = f"the next attempt, in {wait_s:.1f} s, would be past the deadline"
            raise self._error(failure, f"{failure} at attempt {n_failures}; {late}")
        logger.info(  # many of them would hide all else
            "provider %s: %s; retry %d of %d in %.2f s", self._name, failure, n_failures, max_retries, wait_s
        )
        return _Retry(wait_s, is_explained=False)

    def _note(self, error: RequestError, number: int, caller: Caller) -> None:
        """Report a failure that ends the call to the gate."""
        if caller.has_answer:
            return
        if error.shared_by:
            self._gate.failed(number, GateFailure(Cause.SHARED, error.type, error.message), caller)
        elif isinstance(error, DeadlineExceededError):
            self._gate.failed(number, GateFailure(Cause.OWN, error.type, error.message), caller)
        else:  # it refuses this request, so it is there
            self._gate.answered(number)

    async def _or_give_up(self, waiting: Awaitable[T]) -> T:
        """Await a wait at the gate.  Raises ModelAPIError if it exceeds `provider_patience_s`."""
        try:
            return await waiting
        except GateTimeoutError:
            newest = self._gate.newest_failure
            reason = f"{self._name}: waited for it as long as provider_patience_s allows: {newest.reason}"
            raise ModelAPIError(newest.type, reason, self._name) from None

    @contextmanager
    def _holding(self, held: Held) -> Iterator[_Moved]:
        """Measure a wait for the provider, of which `held` tells the caller."""
        moved, since = _Moved(), self._clock()
        with held():
            try:
                yield moved
            finally:
                moved.by_s = self._clock() - since

    def _error(self, failure: TransientError, reason: str, *, is_shared: bool = False) -> ModelAPIError:
        text = with_detail(f"{self._name}: {reason}", self._clean(failure.detail))
        return ModelAPIError(failure.type, text, self._name if is_shared else "")


def _cause_of(failure: TransientError, caller: Caller) -> Cause:
    if failure.status == 429 or (failure.retry_after_s is not None and failure.status in _AWAY_STATUSES):
        return Cause.ASKED
    if isinstance(failure, UnreachableError):
        return Cause.UNREACHABLE
    is_away = failure.status in _AWAY_STATUSES or failure.type == "connection_error"
    return Cause.AWAY if is_away and not caller.has_answer else Cause.OWN


def _attempts(n: int) -> str:
    return f"{n} attempt{'s' * (n > 1)}"
