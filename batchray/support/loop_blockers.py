"""Finds code that blocks an event loop which it shares with other code."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from batchray.support.loop_steps import StepSample, is_blocking, look_at_step

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
# From how long on a step counts as one that blocks the shared loop, and how many are too often.  A single one is
# nothing unusual unless it is long: a client may read certificates when it is first used.
_BLOCKS_S, _MAX_BLOCKING_STEPS = 0.4, 3
_BLOCKS_LONG_S = 2.0


class Blockers:
    """The names of code that blocks a loop, which a thread watches while the loop has users.

    `loop` returns the loop and the id of its thread, `name_of` the name of the code that runs in a context.
    """

    def __init__(
        self,
        loop: Callable[[], tuple[asyncio.AbstractEventLoop, int]],
        name_of: Callable[[contextvars.Context], str | None],
    ) -> None:
        self._loop, self._name_of, self._lock = loop, name_of, threading.Lock()
        self._steps: dict[str, list[Any]] = {}
        self._n_users, self._has_users = 0, threading.Event()
        self._thread: threading.Thread | None = None

    def is_known(self, name: str) -> bool:
        """Whether code of this name has blocked the loop too often."""
        return len(self._steps.get(name, ())) >= _MAX_BLOCKING_STEPS

    def add_user(self) -> None:
        """Count a user of the loop."""
        with self._lock:
            self._n_users += 1
            self._has_users.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="batchray-sync-watch", daemon=True)
                self._thread.start()

    def remove_user(self) -> None:
        """Count a user that has ended."""
        with self._lock:
            self._n_users -= 1
            if not self._n_users:
                self._has_users.clear()

    def _watch(self) -> None:
        loop, thread_id = self._loop()
        while self._has_users.wait():
            answered = threading.Event()
            loop.call_soon_threadsafe(answered.set)
            samples: list[StepSample] = []
            while not answered.wait(_LOOK_S):
                sample = look_at_step(thread_id)
                if samples and (sample is None or sample.handle is not samples[0].handle):
                    samples = []
                if sample is not None:
                    samples.append(sample)
                    self._count(samples)
            del samples
            time.sleep(_LOOK_S)

    def _count(self, samples: list[StepSample]) -> None:
        """Count a step that has blocked the shared loop, under the name of its code."""
        step = samples[-1]
        name, lasted_s = self._name_of(step.context), step.at_s - samples[0].at_s
        if name is None or lasted_s < _BLOCKS_S or self.is_known(name) or not is_blocking(samples):
            return
        steps = self._steps.setdefault(name, [])
        if lasted_s >= _BLOCKS_LONG_S:
            steps[:] = [None] * _MAX_BLOCKING_STEPS
        elif step.handle not in steps:
            steps.append(step.handle)
        if self.is_known(name):
            steps[:] = [None] * _MAX_BLOCKING_STEPS  # holds no tasks
            logger.warning(
                "%s blocks the event loop of sync code; from now on each of its calls gets a loop of its own from "
                "`asyncio.run`, and cannot use an async client that is made once for a module",
                name,
            )
