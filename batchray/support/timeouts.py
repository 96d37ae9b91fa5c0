"""Timeouts that can be paused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class PausedTimeout:
    """A timeout that is paused from `since` until `end` is called; None stands for a timeout that does not exist.

    `clock` returns seconds; both default to the running loop's clock, at this moment.
    """

    def __init__(
        self, timeout: asyncio.Timeout | None, since: float | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._timeout, self._when = timeout, timeout.when() if timeout is not None else None
        self._since = self._clock() if since is None else since
        self.paused_s = 0.0
        """How long the pause lasted; 0 until `end`."""
        self._reschedule(None)

    def end(self) -> None:
        """Continue the timeout with the time that was left when the pause began."""
        self.paused_s = self._clock() - self._since
        self._reschedule(None if self._when is None else self._when + self.paused_s)

    def _reschedule(self, when: float | None) -> None:
        if self._timeout is not None:
            with suppress(RuntimeError):  # its block has ended, or it has expired
                self._timeout.reschedule(when)


@contextmanager
def paused(timeout: asyncio.Timeout | None) -> Iterator[PausedTimeout]:
    """Pause a timeout inside this block."""
    pause = PausedTimeout(timeout)
    try:
        yield pause
    finally:
        pause.end()
