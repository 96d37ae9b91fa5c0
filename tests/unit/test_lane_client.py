"""A lane is called until it answers; a lane that cannot be reached is not taken for a blocked one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from batchray.executors.provider_board import ProviderBoard
from batchray.executors.ray.lane_client import LaneClient, call_until_answered
from batchray.executors.ray.worker_log import WorkerWarnings
from tests.builders.references import Reference
from tests.polling import wait_until

UNAVAILABLE = ActorUnavailableError("the connection broke", None)
SILENCE = "silence"


class Calls:
    """An actor's method whose calls end as a test says; the last outcome repeats."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes: Iterator[Any] = iter(outcomes)
        self._last: Any = None
        self.answered: list[Any] = []

    def remote(self, *args: Any) -> Reference:
        return Reference(self._answer(*args))

    async def _answer(self, *args: Any) -> Any:
        self._last = next(self._outcomes, self._last)
        if self._last is SILENCE:
            await asyncio.Event().wait()
        if isinstance(self._last, Exception):
            raise self._last
        self.answered.append(args)
        return self._last


async def test_a_lane_whose_connection_keeps_breaking_is_called_until_it_answers() -> None:
    assert await call_until_answered(Calls(*[UNAVAILABLE] * 4, "here"), max_silent_polls=2) == "here"


async def test_a_lane_that_neither_answers_nor_fails_is_blocked() -> None:
    with pytest.raises(TimeoutError):
        await call_until_answered(Calls(SILENCE), max_silent_polls=2)


async def test_a_silent_call_is_made_again_while_the_first_waits() -> None:
    assert await call_until_answered(Calls(SILENCE, SILENCE, "here"), max_silent_polls=5) == "here"


async def test_the_death_of_a_lane_is_raised() -> None:
    with pytest.raises(ActorDiedError):
        await call_until_answered(Calls(UNAVAILABLE, ActorDiedError()))


async def test_a_stop_is_sent_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(actor: Any) -> None:
        raise AssertionError("it lives")

    monkeypatch.setattr(ray, "kill", kill)
    stop = Calls(RayError("no room for a call"), UNAVAILABLE, None)
    lane = LaneClient(
        SimpleNamespace(stop=stop), "actor", "node", 1, 1000, ProviderBoard(), WorkerWarnings(lambda: 0.0)
    )
    lane.stop("a")
    lane.stop("b")
    await wait_until(lambda: stop.answered)
    assert stop.answered == [(["a", "b"],)]
