"""When calls to one provider may start, from how earlier calls ended.  Pure: clock and randomness are arguments.

The provider is open, slowed (fewer calls at once, after a 429) or shut (after failures that do not concern one call
alone).  While it is shut one call at a time tries it; the answer to a call that began after the last failed one opens
it.  Before its first answer only a few calls start, so that a wrong key or address costs a few calls and not all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from batchray.support.backoff import backoff_s


class Cause(Enum):
    """Why a call failed, as far as other calls to the provider are concerned."""

    ASKED = "the provider asks to wait"
    UNREACHABLE = "there is no connection to the provider"
    AWAY = "the provider is away: 502, 503, 529, or a connection that ends before any byte of the answer"
    SHARED = "the provider refuses all calls: wrong key, unknown model, empty account"
    OWN = "this call failed, perhaps no other: 500, a timeout, a break in mid-answer"


# How many failures without an answer in between shut the provider.  One 429 or 503 among answers is no outage, and
# neither are the 500s of one request: only failures of different calls count there.
_STRIKES = {Cause.ASKED: 2, Cause.UNREACHABLE: 1, Cause.AWAY: 3, Cause.SHARED: 3, Cause.OWN: 5}
_SHARED_PAUSE_S = 0.2  # between refusals of all calls: they come at once, and the driver has to count them
# A wait that is shorter than this and too short each time becomes longer with each round of refusals, up to this.
_SHORT_S = 1.0
# The limit of calls in flight: the part that one refusal among answers leaves, the part that repeated ones leave, and
# the growth with each success, which is a quarter of the limit in a round of calls.
_SLOWED, _HALVED, _GROWTH = 0.8, 0.5, 0.25
# A provider that asks for a wait of this length limits the calls in a period of time, not those in flight at once.
_PERIOD_S = 5.0


@dataclass(slots=True)
class _Ramp:
    """Starts of calls that become more: `n_first` at once, from `hold_s` on twice as many in each `doubling_s`.

    It ends `lasts_s` after its first call, or with the next answer.
    """

    n_first: int
    hold_s: float
    doubling_s: float
    lasts_s: float = math.inf
    n_started: int = 0
    since: float = -math.inf

    def begin(self, now: float) -> None:
        if not self.n_started:
            self.since = now
        self.n_started += 1

    def wait_s(self, now: float) -> float:
        if self.n_started < self.n_first:
            return 0.0
        n_doublings = math.log2((self.n_started + 1) / self.n_first)
        return self.since + self.hold_s + n_doublings * self.doubling_s - now

    def has_ended(self, now: float) -> bool:
        return self.n_started > 0 and now - self.since >= self.lasts_s


def _first_calls() -> _Ramp:
    """Two calls, then up to 1,000 within a quarter of a second unless one of them fails."""
    return _Ramp(2, hold_s=0.1, doubling_s=0.015)


def _probes() -> _Ramp:
    """One call, and more if it is neither answered nor failed for seconds: the provider may be slow, or it may hang."""
    return _Ramp(1, hold_s=1.0, doubling_s=1.0)


def _reopening() -> _Ramp:
    """All calls again within a quarter of a second, and not at the same moment."""
    return _Ramp(2, hold_s=0.0, doubling_s=0.025, lasts_s=0.5)


class GatePolicy:
    """Decides when the next call to a provider may start.  `clock` gives monotonic seconds.

    Each call has a number from `begin`, to be passed to `answered`, `failed` and `end`.
    """

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        self._clock, self._rng = clock, rng
        self.is_open = False
        """Whether any call may start now; a caller that sees this need not ask for `wait_s`."""
        self.has_answered = False
        """Whether the provider has ever answered."""
        self.cause: Cause | None = None
        """The cause of the newest failure."""
        self.n_openings = 0
        """How often the provider has been opened again."""
        self.n_rounds = 0
        """How many calls have failed one after the other, each begun after the one before it had failed."""
        self._n_begun = self._n_in_flight = self._n_strikes = 0
        self._last_failed = self._n_begun_at_failure = 0
        self._n_begun_at_opening = self._n_refused = 0  # refused since the provider was opened
        self._longest_asked_s, self._quota = 0.0, math.inf
        self._last_caller: object = None
        self._opens_at = -math.inf
        self._ramp: _Ramp | None = _first_calls()
        self._limit = self._peak = math.inf
        self._factor = 1.0  # what the newest episode of refusals has left of the limit
        self._shut_since: float | None = None
        self._shut_s = 0.0

    @property
    def is_shut(self) -> bool:
        """Whether calls are held back until one of them is answered."""
        return self._shut_since is not None

    @property
    def is_slowed(self) -> bool:
        """Whether fewer calls than usual may be in flight at once."""
        return self._limit < math.inf

    def shut_s(self) -> tuple[float, float]:
        """Return for how long the provider has been shut now, and in all, in seconds."""
        now_s = 0.0 if self._shut_since is None else self._clock() - self._shut_since
        return now_s, self._shut_s + now_s

    def wait_s(self) -> float:
        """Return how long until the next call may start: 0 or less for now, infinite until another call has ended."""
        if self.is_open:
            return 0.0
        now = self._clock()
        if now < self._opens_at:
            return self._opens_at - now
        if self._n_in_flight + 1 > self._limit:
            return math.inf
        if self._ramp is None:
            return 0.0
        if self._ramp.has_ended(now):
            self._set_ramp(None)
            return 0.0
        return self._ramp.wait_s(now)

    def begin(self) -> int:
        """Count a call that starts now; return its number, from 1."""
        self._n_begun += 1
        self._n_in_flight += 1
        if self._ramp is not None:
            self._ramp.begin(self._clock())
        if self._n_begun - self._n_begun_at_opening >= self._quota:
            self._limit, self._quota = 1.0, math.inf  # the period that follows may allow more, or not
        return self._n_begun

    def answered(self, number: int) -> None:
        """The provider has accepted a call: the first part of its answer is here.

        An answer to a call that began before the last failed one says nothing about now.
        """
        is_first, self.has_answered = not self.has_answered, True
        if number <= self._last_failed and not (is_first and self.cause is not Cause.ASKED):
            return
        self._n_strikes = self.n_rounds = 0
        if number > self._n_begun_at_failure:
            self._factor = 1.0
        if self._shut_since is not None:
            self._open()
        elif is_first:
            self._set_ramp(None)

    def end(self, *, is_success: bool) -> None:
        """A call has ended, whether it was answered or not."""
        self._n_in_flight -= 1
        if is_success and self._limit < math.inf:
            self._limit += _GROWTH
            if self._limit >= self._peak:
                self._limit = self._peak = self._quota = math.inf
                self._update()

    def failed(self, number: int, cause: Cause, wait_s: float | None = None, caller: object = None) -> None:
        """A call has failed.  `wait_s` is how long the provider asks to wait; `caller` is the same for its retries."""
        is_new_round = number > self._n_begun_at_failure
        self._n_begun_at_failure, self._last_failed = self._n_begun, max(self._last_failed, number)
        self.cause = cause
        self.n_rounds += is_new_round
        self._n_strikes += cause is not Cause.OWN or caller is None or caller is not self._last_caller
        self._last_caller = caller
        has_to_shut = self.is_shut or not self.has_answered or self._n_strikes >= _STRIKES[cause]
        if cause is Cause.ASKED:
            self._n_refused += 1
            self._longest_asked_s = max(self._longest_asked_s, wait_s or 0.0)
            self._slow(_HALVED if has_to_shut else _SLOWED)
        if not has_to_shut:
            return
        if wait_s is not None:
            if wait_s < _SHORT_S:
                wait_s = max(wait_s, min(self._backoff_s(cause), _SHORT_S))
            self._opens_at = max(self._opens_at, self._clock() + wait_s)
        elif is_new_round or not self.is_shut:
            self._opens_at = max(self._opens_at, self._clock() + self._backoff_s(cause))
        if is_new_round or not self.is_shut:
            self._shut()

    def _backoff_s(self, cause: Cause) -> float:
        """Return the wait before the next call that tries a shut provider."""
        if cause is Cause.SHARED:
            return _SHARED_PAUSE_S
        n, jitter = max(self.n_rounds - 1, 0), self._rng.uniform(0.8, 1.2)
        if not self.has_answered and cause is not Cause.UNREACHABLE:
            return min(0.3 * 4.0 ** min(n, 9), 40.0) * jitter  # perhaps this address will never answer
        cap_s = 30.0 if cause is Cause.ASKED else 5.0  # a server that is back should not wait long for its calls
        return backoff_s(n, 0.25, cap_s) * jitter

    def _shut(self) -> None:
        if self._shut_since is None:
            self._shut_since = self._clock()
        self._set_ramp(_probes())

    def _open(self) -> None:
        assert self._shut_since is not None
        self._shut_s += self._clock() - self._shut_since
        self._shut_since, self._opens_at = None, -math.inf
        self.n_openings += 1
        n_admitted = self._n_begun - self._n_begun_at_opening - self._n_refused
        self._quota = max(1, n_admitted) if self._longest_asked_s >= _PERIOD_S else math.inf
        self._n_begun_at_opening, self._n_refused, self._longest_asked_s = self._n_begun, 0, 0.0
        self._set_ramp(_reopening())

    def _slow(self, factor: float) -> None:
        """Leave this part of the calls in flight; in one episode of refusals the smallest of the factors counts."""
        if factor >= self._factor:
            return
        usual = min(self._limit, self._n_in_flight) if self._factor == 1.0 else self._limit
        self._peak = max(usual, self._peak) if self.is_slowed else usual + 1.0
        self._limit, self._factor = max(1.0, usual * factor / self._factor), factor
        self._update()

    def _set_ramp(self, ramp: _Ramp | None) -> None:
        self._ramp = ramp
        self._update()

    def _update(self) -> None:
        self.is_open = self._ramp is None and self._limit == math.inf and self._shut_since is None
