"""Supervises the executor: restarts it when its cluster is lost, and ends the server if that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from batchray.config import Settings
from batchray.errors import ClusterError

logger = logging.getLogger(__name__)

_POLL_S = 0.5
# The delay before each attempt: a cluster that this server does not manage may come back within a minute.
_DELAYS_S = (0.0, 5.0, 10.0, 15.0)


class ExecutorSource(Protocol):
    """The part of `Runtime` that starts executors."""

    def is_ready(self, settings: Settings) -> bool:
        """Return whether an executor for these settings can run requests now."""
        ...

    async def ensure_executor(self, settings: Settings) -> object:
        """Start the executor if none is alive.  Raises ClusterError."""
        ...


async def supervise(
    source: ExecutorSource, settings: Settings, poll_s: float = _POLL_S, delays_s: Sequence[float] = _DELAYS_S
) -> None:
    """Restart the executor whenever it is lost, until this is cancelled.

    Raises ClusterError if a lost executor cannot be restarted.  The server then has to exit, so that the process
    manager (systemd, Kubernetes) starts a new one.
    """
    while True:
        if not source.is_ready(settings):
            await _restart(source, settings, delays_s)
        await asyncio.sleep(poll_s)


async def _restart(source: ExecutorSource, settings: Settings, delays_s: Sequence[float]) -> None:
    last_error: ClusterError | None = None
    for delay_s in delays_s:
        await asyncio.sleep(delay_s)
        logger.warning("the executor is lost; restarting it")
        try:
            await source.ensure_executor(settings)
        except ClusterError as error:
            logger.warning("the executor could not be restarted: %s", error)
            last_error = error
        else:
            logger.warning("the executor is running again")
            return
    raise ClusterError(
        f"Ray is lost and could not be restarted ({last_error}); jobs continue when the server starts again"
    )
