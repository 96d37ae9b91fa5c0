"""A provider in virtual time, for tests of the gate: clients call it through a real `Attempts`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from batchray.models.attempts import Attempt, Attempts
from batchray.models.gate import ProviderGate
from batchray.models.provider_errors import TransientError
from batchray.models.retry import RetryPolicy

Answer = Callable[[float, int], Exception | float]
"""Given the time and the caller: the error of a call, or how many seconds its answer takes."""


class BrokenAnswerError(TransientError):
    """The connection ends after the first part of the answer."""


class VirtualProvider:
    """Answers calls as `answer` says, and records when each arrived, in virtual seconds.  Errors come after 5 ms."""

    def __init__(
        self, answer: Answer, *, max_wait_s: float = float("inf"), max_retries: int = 8, seed: int = 1
    ) -> None:
        loop, rng = asyncio.get_running_loop(), random.Random(seed)
        self._answer, self._loop = answer, loop
        self.changes: list[bool] = []
        self.gate = ProviderGate(
            clock=loop.time, sleep=asyncio.sleep, rng=rng, max_wait_s=max_wait_s, on_change=self._note_change
        )
        self._attempts = Attempts(
            "local",
            self.gate,
            RetryPolicy(max_retries=max_retries),
            str,
            clock=loop.time,
            sleep=asyncio.sleep,
            rng=rng,
        )
        self.arrivals: list[tuple[float, int]] = []
        """When calls arrived, and whose they were."""
        self.n_in_flight = self.max_in_flight = 0

    async def call(self, caller: int, deadline_s: float = float("inf")) -> float:
        """Make one call, with all its attempts; return when it was answered."""

        async def attempt(started: Attempt) -> float:
            self.arrivals.append((self._loop.time(), caller))
            self.n_in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.n_in_flight)
            try:
                return await self._work(self._answer(self._loop.time(), caller), started)
            finally:
                self.n_in_flight -= 1

        return await self._attempts.run(attempt, self._loop.time() + deadline_s, nullcontext)

    async def calls(self, n: int, **options: Any) -> list[float | BaseException]:
        """Make `n` calls at once, and return their times or errors."""
        return await asyncio.gather(*(self.call(i, **options) for i in range(n)), return_exceptions=True)

    async def _work(self, answer: Exception | float, started: Attempt) -> float:
        await asyncio.sleep(0.005)
        if isinstance(answer, BrokenAnswerError):
            started.answered()
        if isinstance(answer, Exception):
            raise answer
        started.answered()
        await asyncio.sleep(answer)
        return self._loop.time()

    def _note_change(self) -> None:
        self.changes.append(self.gate.is_shut)
