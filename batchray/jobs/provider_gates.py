"""Holds back a job's requests while their provider takes no calls, or refuses them.

A job has a gate for each provider, apart from other jobs.  A gate is a limit of requests in flight:

- It is small until the provider has answered a job of this process, so that few calls are lost if it refuses
  them all.  After a fifth of a second without an answer it doubles again and again: a refusal would have come sooner.
- Each failure that all requests of the provider share lowers it, and an answer lifts it.
- It is 1 while the provider takes no calls, so that one request tries it.  The deadlines of its requests pause then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from batchray.config import AgentSet, endpoint_id
from batchray.executors import ProviderState
from batchray.jobs.deadlines import Pauses
from batchray.jobs.slots import Slot, Slots

FIRST_IN_FLIGHT = 32
"""Requests in flight to a provider that has not answered yet."""
GROWTH_S = 0.05
"""How often the limit of a gate may grow."""
# A refusal by a provider on the same network takes milliseconds.  A slow first answer must not hold up a wide window:
# it is full after half a second.
_FIRST_ANSWER_S = 0.2
_GROWTH_AFTER_FAILURE, _AFTER_FAILURE_S, _PACE_AFTER_FAILURE_S = 8, 2.0, 0.5
# The longest time between the start of a pause and its first report.
_MAX_AGO_S = 1.0


class JobProviderGate:
    """The gate of one provider in one job.  `pauses` are those of the deadlines of its requests.

    `endpoint` tells it apart from providers of the same name.  `answered` are the endpoints that have answered jobs of
    this process since they last refused a request.
    """

    def __init__(
        self, provider: str, job_id: str, slots: Slots, endpoint: str = "", answered: set[str] | None = None
    ) -> None:
        self.provider, self.pauses = provider, Pauses()
        self.slot = Slot(("gate", job_id, provider, endpoint), sys.maxsize)
        self.state: ProviderState | None = None
        self.unanswered_since: float | None = None
        """Since when it has been unavailable without ever having answered, on a monotonic clock."""
        self._slots, self._endpoint = slots, endpoint
        self._answered = set() if answered is None else answered
        self._limit: int | None = None if endpoint in self._answered else FIRST_IN_FLIGHT
        self._answered_after = self._refused_at = float("-inf")
        self._grows_at: float | None = None
        self._is_refusing = self._has_answered = False
        self._apply()

    @property
    def in_flight(self) -> int:
        """How many of the job's requests to this provider are in flight."""
        return self._slots.n_used(self.slot.key)

    @property
    def n_waiting(self) -> int:
        """How many of them only wait for the provider."""
        return min(self.state.n_waiting, self.in_flight) if self.state is not None else 0

    @property
    def is_limited(self) -> bool:
        """Whether its limit may grow."""
        return self._limit is not None

    def set_answered(self, started_at: float) -> None:
        """Lift the limit: an attempt that started at this moment has been answered."""
        self._answered_after = max(self._answered_after, started_at)
        self._has_answered, self.unanswered_since = True, None
        if started_at >= self._refused_at:
            self._limit, self._is_refusing = None, False
            self._answered.add(self._endpoint)
        self.update(self.state, started_at)

    def set_refused(self, now: float) -> None:
        """Lower the limit: a request that is still in flight has met a failure that all requests share."""
        self._limit = max(1, min(self.in_flight - 1, sys.maxsize if self._limit is None else self._limit))
        self._refused_at, self._is_refusing, self._grows_at = now, True, now + _AFTER_FAILURE_S
        self._answered.discard(self._endpoint)
        self._apply()

    def grow(self, now: float) -> None:
        """Raise the limit if it is reached for long enough; call it every `GROWTH_S`."""
        if self._grows_at is None and self.in_flight:
            self._grows_at = now + _FIRST_ANSWER_S
        is_due = self._grows_at is not None and now >= self._grows_at
        if self._limit is not None and is_due and self.in_flight >= self._limit and not self._is_shut:
            self._limit = self._limit + _GROWTH_AFTER_FAILURE if self._is_refusing else self._limit * 2
            self._grows_at = now + (_PACE_AFTER_FAILURE_S if self._is_refusing else GROWTH_S)
            self._apply()

    def update(self, state: ProviderState | None, now: float) -> None:
        """Take over what the executor reports of the provider; None: nothing holds its calls back."""
        if state is not None and self._answered_after > state.since and _concerns_one_worker(state, now):
            state = None
        self.state = state
        if state is None or state.has_answered or self._has_answered:
            self.unanswered_since = None
        elif state.is_unavailable and self.unanswered_since is None:
            self.unanswered_since = now
        if state is not None and state.holds_back:
            self.pauses.begin(min(max(now - state.since, 0.0), _MAX_AGO_S))
        else:
            self.pauses.end()
        self._apply()

    def hopeless_because(self, now: float, left_s: float, max_unanswered_s: float) -> str | None:
        """Return why waiting for the provider is useless for a job that has `left_s` seconds left, or None."""
        state = self.state
        if state is None:
            return None
        if self.unanswered_since is not None and now - self.unanswered_since >= max_unanswered_s:
            for_s = f"{now - self.unanswered_since:.0f} s"
            return f"provider {self.provider!r} has never answered, for {for_s} now; check its base_url: {state.reason}"
        if state.is_shut and not state.is_unavailable and (wait_s := state.opens_at - now) > left_s:
            longer = f"for {wait_s:,.0f} s, longer than the {left_s:,.0f} s that the job has left (job_deadline_s)"
            return f"provider {self.provider!r} takes no calls {longer}: {state.reason}"
        return None

    def give_time(self) -> None:
        """Count the time without an answer from now on: the address may have been corrected."""
        self.unanswered_since = None

    def close(self) -> None:
        """Leave nothing behind in the slots that jobs share."""
        self._slots.limit(self.slot, None)

    @property
    def _is_shut(self) -> bool:
        return self.state is not None and self.state.holds_back

    def _apply(self) -> None:
        self._slots.limit(self.slot, 1 if self._is_shut else self._limit)


def _concerns_one_worker(state: ProviderState, now: float) -> bool:
    """Return whether calls of other workers may be answered: one cannot reach it, or may try it again and has no call.

    The latter reports a wait that is over until it makes its next call, which may be never.
    """
    return state.is_unavailable or (not state.n_waiting and state.opens_at <= now)


class ProviderGates:
    """The gates of a job, by agent.  Agents without a provider, or with a scripted one, have none.

    Jobs of a process share `answered`.
    """

    def __init__(self, job_id: str, agents: AgentSet, slots: Slots, answered: set[str] | None = None) -> None:
        self._by_endpoint: dict[str, JobProviderGate] = {}
        self._by_agent: dict[str, JobProviderGate] = {}
        for agent_id, bound in agents.agents.items():
            name = bound.agent.provider_name
            if name is None or bound.provider is None or bound.provider.protocol == "offline":
                continue
            endpoint = endpoint_id(name, bound.provider, bound.key, bound.access)
            if endpoint not in self._by_endpoint:
                self._by_endpoint[endpoint] = JobProviderGate(name, job_id, slots, endpoint, answered)
            self._by_agent[agent_id] = self._by_endpoint[endpoint]

    def __iter__(self) -> Iterator[JobProviderGate]:
        return iter(self._by_endpoint.values())

    def of_agent(self, agent_id: str) -> JobProviderGate | None:
        """Return the gate of an agent's provider."""
        return self._by_agent.get(agent_id)

    def update(self, states: Mapping[str, ProviderState], now: float) -> None:
        """Take over what the executor reports."""
        for endpoint, gate in self._by_endpoint.items():
            gate.update(states.get(endpoint), now)

    def grow(self, now: float) -> bool:
        """Raise limits that are reached; return whether there is a limit left to raise.  Call it every `GROWTH_S`."""
        limited = [gate for gate in self._by_endpoint.values() if gate.is_limited]
        for gate in limited:
            gate.grow(now)
        return bool(limited)

    @property
    def n_waiting(self) -> int:
        """How many of the job's requests in flight only wait for their provider."""
        return sum(gate.n_waiting for gate in self._by_endpoint.values())

    def close(self) -> None:
        """Leave nothing behind in the slots that jobs share."""
        for gate in self._by_endpoint.values():
            gate.close()
