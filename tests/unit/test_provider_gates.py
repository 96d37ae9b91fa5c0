"""The gates of a job's providers: how many requests may be in flight, and whose deadlines pause."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.config import Agent, Provider, bind_agents
from batchray.executors import ProviderBoard, ProviderState
from batchray.jobs.deadlines import PausableDeadlines
from batchray.jobs.provider_gates import FIRST_IN_FLIGHT, JobProviderGate, ProviderGates
from batchray.jobs.slots import Slots
from batchray.schema import ProviderWait

AWAY = ProviderState("p", True, "refused", True, n_waiting=3, opens_at=110.0, since=100.0, has_answered=False)
LIMITED = dataclasses.replace(AWAY, is_unavailable=False, has_answered=True)


def start(gate: JobProviderGate, slots: Slots, n: int) -> int:
    """Start up to `n` requests; return how many the gate lets through."""
    return sum(slots.acquire((gate.slot,)) for _ in range(n))


def finish(gate: JobProviderGate, slots: Slots, n: int = 1) -> None:
    for _ in range(n):
        slots.release((gate.slot,))


async def test_few_requests_start_until_the_provider_has_answered() -> None:
    slots = Slots()
    gate = JobProviderGate("p", "job", slots)
    assert start(gate, slots, 1000) == FIRST_IN_FLIGHT
    gate.grow(10.0)
    gate.grow(10.15)
    assert start(gate, slots, 1000) == 0
    gate.grow(10.2)
    assert start(gate, slots, 1000) == FIRST_IN_FLIGHT  # twice as many
    gate.grow(10.2)
    assert start(gate, slots, 1000) == 0
    gate.grow(10.25)
    assert start(gate, slots, 1000) == 2 * FIRST_IN_FLIGHT
    gate.set_answered(1.0)
    assert (start(gate, slots, 1000), gate.is_limited) == (1000, False)


async def test_a_provider_that_has_answered_a_job_is_not_tried_again_by_the_next_one() -> None:
    slots, answered = Slots(), set[str]()
    first = JobProviderGate("p", "job", slots, "http://p", answered)
    assert start(first, slots, 1000) == FIRST_IN_FLIGHT
    first.set_answered(1.0)
    second, other = (JobProviderGate("p", "later", slots, each, answered) for each in ("http://p", "http://q"))
    assert (start(second, slots, 1000), start(other, slots, 1000)) == (1000, FIRST_IN_FLIGHT)
    second.set_refused(2.0)
    assert start(JobProviderGate("p", "last", slots, "http://p", answered), slots, 1000) == FIRST_IN_FLIGHT


async def test_a_refused_request_is_not_replaced_by_another() -> None:
    slots = Slots()
    gate = JobProviderGate("p", "job", slots)
    assert start(gate, slots, 100) == 32
    for n in range(20):
        gate.set_refused(10.0 + n)
        finish(gate, slots)
        assert start(gate, slots, 100) == 0
    gate.set_answered(5.0)  # it began before the refusals
    assert start(gate, slots, 100) == 0
    gate.set_answered(30.0)
    assert start(gate, slots, 100) == 100


async def test_one_request_may_always_be_in_flight() -> None:
    slots = Slots()
    gate = JobProviderGate("p", "job", slots)
    for n in range(50):
        assert start(gate, slots, 1) == 1
        gate.set_refused(float(n))
        finish(gate, slots)


async def test_nothing_starts_on_a_provider_that_is_shut_and_deadlines_pause() -> None:
    slots, deadlines = Slots(), PausableDeadlines()
    gate = JobProviderGate("p", "job", slots)
    assert start(gate, slots, 5) == 5
    async with deadlines.timeout(100.0, gate.pauses) as limit:
        gate.update(LIMITED, now=101.0)
        assert (limit.when(), start(gate, slots, 5), gate.n_waiting) == (None, 0, 3)
        gate.update(dataclasses.replace(LIMITED, is_shut=False), now=102.0)  # calls still wait for their turn
        assert (limit.when(), start(gate, slots, 5)) == (None, 0)
        gate.update(None, now=103.0)
        assert limit.when() is not None
    assert start(gate, slots, 5) == 5


async def test_one_request_tries_a_provider_that_is_shut() -> None:
    slots = Slots()
    gate = JobProviderGate("p", "job", slots)
    gate.update(AWAY, now=101.0)
    assert start(gate, slots, 5) == 1
    finish(gate, slots)
    assert start(gate, slots, 5) == 1


async def test_pauses_of_store_and_provider_may_overlap() -> None:
    slots, deadlines = Slots(), PausableDeadlines(slow_s=0.0)
    gate = JobProviderGate("p", "job", slots)
    async with deadlines.timeout(100.0, gate.pauses) as limit:
        ends = limit.when()
        gate.update(LIMITED, now=101.0)
        with deadlines.commit():
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gate.update(None, now=103.0)
            assert limit.when() is None
        assert limit.when() is not None
        assert ends is not None


async def test_one_worker_that_cannot_reach_a_provider_holds_up_no_other() -> None:
    slots = Slots()
    gate = JobProviderGate("p", "job", slots)
    gate.set_answered(105.0)
    gate.update(AWAY, now=106.0)
    assert start(gate, slots, 100) == 100
    gate.update(dataclasses.replace(AWAY, since=107.0), now=108.0)
    assert start(gate, slots, 100) == 0


async def test_one_worker_that_has_not_tried_again_after_its_wait_holds_up_no_other() -> None:
    slots = Slots()
    gate = JobProviderGate("p", "job", slots)
    waited = dataclasses.replace(LIMITED, n_waiting=0, opens_at=110.0)
    gate.set_answered(105.0)
    gate.update(waited, now=109.0)  # the wait has not ended
    assert start(gate, slots, 100) == 1
    gate.update(waited, now=110.0)
    assert start(gate, slots, 100) == 100


@pytest.mark.parametrize(
    ("state", "now", "left_s", "expected"),
    [
        (AWAY, 219.0, 1e6, None),
        (AWAY, 221.0, 1e6, "provider 'p' has never answered, for 120 s now; check its base_url: refused"),
        (dataclasses.replace(AWAY, has_answered=True), 10_000.0, 1e6, None),
        (LIMITED, 10_000.0, 1e6, None),
        (
            LIMITED,
            101.0,
            5.0,
            "provider 'p' takes no calls for 9 s, longer than the 5 s that the job has left (job_deadline_s): refused",
        ),
    ],
)
async def test_a_wait_that_cannot_succeed_is_reported_with_its_reason(
    state: ProviderState, now: float, left_s: float, expected: str | None
) -> None:
    gate = JobProviderGate("p", "job", Slots())
    gate.update(state, now=101.0)
    gate.update(state, now=now)
    assert gate.hopeless_because(now, left_s, max_unanswered_s=120.0) == expected


async def test_an_answer_shows_that_the_address_is_right() -> None:
    gate = JobProviderGate("p", "job", Slots())
    gate.update(AWAY, now=101.0)
    gate.set_answered(101.0)
    gate.update(dataclasses.replace(AWAY, since=150.0), now=151.0)
    assert gate.hopeless_because(1000.0, 1e6, max_unanswered_s=120.0) is None


async def test_a_job_leaves_nothing_in_the_slots_that_others_share() -> None:
    slots = Slots()
    agents = bind_agents(
        [Agent(id="a", model="p/m"), Agent(id="b", model="p/n"), Agent(id="o", model="offline/rules")],
        {"p": Provider(protocol="openai", base_url="http://h")},
        {},
    )
    gates = ProviderGates("job", agents, slots)
    assert [gate.provider for gate in gates] == ["p"]
    assert gates.of_agent("a") is gates.of_agent("b") is next(iter(gates))
    assert gates.of_agent("o") is None
    gates.close()
    assert not slots._limits


def wait(n_waiting: int = 1, wait_s: float = 5.0, provider: str = "p") -> ProviderWait:
    return ProviderWait(
        provider=provider,
        endpoint=provider,
        kind="rate_limited",
        reason="status 429",
        wait_s=wait_s,
        n_waiting=n_waiting,
        since_s=2.0 if wait_s else 0.0,
        total_s=2.0,
        has_answered=True,
    )


def test_the_board_adds_up_the_workers() -> None:
    board = ProviderBoard(clock=lambda: 100.0)
    told = []
    with board.listening(lambda: told.append(dict(board.states()))):
        board.report("one", [wait(2, 5.0)])
        board.report("two", [wait(3, 9.0), wait(1, provider="q")])
        state = board.states()["p"]
        assert (state.n_waiting, state.opens_at, state.since, state.is_shut) == (5, 109.0, 98.0, True)
        board.forget("two")
        board.report("one", [wait(2, 0.0)])
        assert (board.states()["p"].is_shut, board.states()["p"].holds_back) == (False, True)
        board.report("one", [])
        board.report("one", [])  # no news
    board.report("one", [wait()])
    assert [sorted(states) for states in told] == [["p"], ["p", "q"], ["p"], ["p"], []]


@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "finish", "refused", "answered", "grow", "shut", "open"])), max_size=80
    )
)
def test_a_gate_starts_no_more_requests_than_its_state_allows(story: list[tuple[str]]) -> None:
    async def act() -> None:
        slots = Slots()
        gate, is_shut, n = JobProviderGate("p", "job", slots), False, 0
        for now, (what,) in enumerate(story, start=1):
            if what == "start":
                n_started = start(gate, slots, 40)
                assert n_started <= (n == 0) or not is_shut
                n += n_started
            elif what == "finish" and n:
                finish(gate, slots)
                n -= 1
            elif what == "refused" and n:
                gate.set_refused(float(now))
                finish(gate, slots)
                n -= 1
                assert start(gate, slots, 1) == 0 or n == 0
                n = gate.in_flight
            elif what == "answered":
                gate.set_answered(float(now))
            elif what == "grow":
                gate.grow(float(now))
            elif what in ("shut", "open"):
                is_shut = what == "shut"
                gate.update(dataclasses.replace(LIMITED, since=float(now)) if is_shut else None, float(now))
            assert gate.in_flight == n
        gate.update(None, 1e9)
        finish(gate, slots, n)
        assert start(gate, slots, 1) == 1  # it always comes through in the end

    asyncio.run(act())
