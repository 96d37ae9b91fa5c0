from __future__ import annotations

from batchray.jobs.deadlines import Pauses, Stopwatch
from batchray.jobs.in_flight import InFlight


class Clock:
    """A clock in ns that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> int:
        return int(self.now_s * 1e9)


def test_an_attempt_beyond_its_limit_is_reported_once_and_shown_until_it_ends() -> None:
    clock = Clock()
    flights = InFlight(clock)
    flights.begin(7, "slow", 1, limit_s=10)
    flights.begin(3, "patient", 1, limit_s=1000)
    assert flights.newly_stalled() == []
    clock.now_s += 11
    assert [flight.index for flight in flights.newly_stalled()] == [7]
    assert flights.newly_stalled() == []
    assert flights.stalled(5) == [{"index": 7, "agent_id": "slow", "attempt": 1, "age_ns": 11_000_000_000}]
    flights.end(7)
    assert flights.stalled(5) == []


def test_the_next_attempt_at_an_item_is_reported_again() -> None:
    clock = Clock()
    flights = InFlight(clock)
    for attempt in (1, 2):
        flights.begin(7, "slow", attempt, limit_s=10)
        assert flights.newly_stalled() == []
        clock.now_s += 11
        assert [flight.attempt for flight in flights.newly_stalled()] == [attempt]
        flights.end(7)


def test_the_oldest_attempts_come_first() -> None:
    clock = Clock()
    flights = InFlight(clock)
    for index in (5, 2, 9):
        flights.begin(index, "a", 1, limit_s=10)
        clock.now_s += 1
    assert [each["index"] for each in flights.oldest(2)] == [5, 2]


async def test_an_attempt_whose_provider_takes_no_calls_has_not_stalled() -> None:
    clock, pauses = Clock(), Pauses()
    flights = InFlight(clock)
    stopwatch = Stopwatch((pauses,))
    flights.begin(7, "slow", 1, 10, stopwatch)
    pauses.begin(5.0)
    clock.now_s += 12
    assert flights.newly_stalled() == []
    clock.now_s += 12
    assert [flight.index for flight in flights.newly_stalled()] == [7]
