"""Keeps what runs the requests: where a cluster is gone, another one is started, or the server ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from batchray.config import Settings
from batchray.errors import ClusterError

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
# Before each try: a cluster that is not ours may come back within a minute.
_WAITS_S = (0.0, 5.0, 10.0, 15.0)


class ExecutorSource(Protocol):
    """What has an executor for these settings.  See `Runtime`."""

    def is_ready(self, settings: Settings) -> bool:
        """Whether there is one that can run requests now."""
        ...

    async def ensure_executor(self, settings: Settings) -> object:
        """Start one anew where it is gone.  Raises ClusterError."""
        ...


async def supervise(
    hosts: ExecutorSource, settings: Settings, look_s: float = _LOOK_S, waits_s: Sequence[float] = _WAITS_S
) -> None:
    """Look after the executor for as long as the server runs.

    Raises ClusterError where it is gone and cannot be started anew; then the server has to end, so that its supervisor
    starts another one.
    """
    while True:
        if not hosts.is_ready(settings):
            await _revive(hosts, settings, waits_s)
        await asyncio.sleep(look_s)


async def _revive(hosts: ExecutorSource, settings: Settings, waits_s: Sequence[float]) -> None:
    error: ClusterError | None = None
    for wait_s in waits_s:
        await asyncio.sleep(wait_s)
        logger.warning("what runs the requests is gone, and is started anew")
        try:
            await hosts.ensure_executor(settings)
        except ClusterError as raised:
            logger.warning("it could not be started: %s", raised)
            error = raised
        else:
            logger.warning("what runs the requests is back")
            return
    raise ClusterError(f"Ray is gone and could not be started anew ({error}); jobs go on when the server starts again")
