"""Log lines that clients could cause by the thousand, written once in a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class RareLog:
    """Logs one message at most once in `interval_s` seconds, with how often it was left out since the last time."""

    def __init__(
        self,
        logger: logging.Logger,
        level: int,
        message: str,
        interval_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger, self._level, self._message = logger, level, message
        self._interval_s, self._clock = interval_s, clock
        self._logged_at, self._n_left_out = -interval_s + clock(), 0

    def log(self, *arguments: object) -> None:
        """Log the message with its arguments, or only count it."""
        now = self._clock()
        if now < self._logged_at + self._interval_s:
            self._n_left_out += 1
            return
        more = f" ({self._n_left_out} more since the last such line)" if self._n_left_out else ""
        self._logger.log(self._level, self._message + more, *arguments)
        self._logged_at, self._n_left_out = now, 0
