"""Warnings that are logged in a lane, on their way to the log of its driver: Ray keeps a worker's output in a file."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

_MAX_KEPT = 100
_MAX_CHARS = 2000
# A driver has several lanes, which may all have the same thing to say.
_SILENCE_S = 60.0
_MAX_REMEMBERED = 1000

LoggedWarning = tuple[str, int, str]
"""The name of a logger, a level and a message."""


class WorkerLog(logging.Handler):
    """Keeps the newest warnings of this process until its driver takes them; calls `on_warning` for each."""

    def __init__(self, on_warning: Callable[[], object] = lambda: None) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[LoggedWarning] = deque(maxlen=_MAX_KEPT)
        self._on_warning = on_warning

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self._kept.append((record.name, record.levelno, record.getMessage()[:_MAX_CHARS]))
        self._on_warning()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self) -> list[LoggedWarning]:
        """Return the warnings since the last call."""
        taken = list(self._kept)
        self._kept.clear()
        return taken


class WorkerWarnings:
    """Logs the warnings of all workers in the driver's process; the same one again only after a minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logged: OrderedDict[LoggedWarning, float] = OrderedDict()

    def log(self, warnings: Iterable[LoggedWarning]) -> None:
        """Log the warnings that a worker has reported."""
        now = self._clock()
        for name, level, message in warnings:
            warning = (name, level, message)
            logged_at = self._logged.get(warning)
            if logged_at is None or now - logged_at >= _SILENCE_S:
                logging.getLogger(name).log(level, "%s", message)
                self._logged[warning] = now
                self._logged.move_to_end(warning)
            while len(self._logged) > _MAX_REMEMBERED:
                self._logged.popitem(last=False)
