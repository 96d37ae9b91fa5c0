"""Processes that wait until the cluster has CPUs for them, and a warning if others use all of these."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from batchray.executors.ray.calls import AttemptClock
from batchray.executors.ray.nodes import UNREADABLE, Node

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_WARN_AFTER_S = 15.0
_REPEAT_S = 60.0


class QueuedProcesses:
    """The processes of one driver, from their call on.  Warns each minute while all of them wait.

    As long as one of them runs, the others wait for it, which is as it should be.
    """

    def __init__(
        self, read_nodes: Callable[[], Awaitable[Sequence[Node]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read_nodes, self._clock = read_nodes, clock
        self._calls: dict[AttemptClock, tuple[float, str, Mapping[str, float]]] = {}
        self._warned_at = float("-inf")

    @contextmanager
    def containing(self, call: AttemptClock, agent_id: str, wanted: Mapping[str, float]) -> Iterator[None]:
        """Count a process that asks for these resources inside this block."""
        self._calls[call] = (self._clock(), agent_id, wanted)
        try:
            yield
        finally:
            del self._calls[call]

    async def watch(self) -> None:
        """Look every five seconds, without an end."""
        while True:
            await asyncio.sleep(_POLL_S)
            with suppress(*UNREADABLE):  # the cluster may be gone, which others notice
                await self.look()

    async def look(self) -> None:
        """Warn if no process runs, the first of them has waited for long, and no node has what it asks for."""
        if not self._calls or any(call.node_id is not None for call in self._calls):
            return
        since, agent_id, wanted = next(iter(self._calls.values()))
        now = self._clock()
        if now - since < _WARN_AFTER_S or now - self._warned_at < _REPEAT_S:
            return
        nodes = await self._read_nodes()
        cpus = wanted.get("CPU", 0.0)
        if any(node.free_cpus >= cpus and node.has(wanted) for node in nodes):
            return  # it has what it needs, and starts slowly
        self._warned_at = now
        n_cpus, n_free = sum(node.resources.get("CPU", 0.0) for node in nodes), sum(node.free_cpus for node in nodes)
        logger.warning(
            "requests of agent %r have waited %.0f s for CPUs: each takes %g on one node, and of the cluster's %g only "
            "%g are free; they start when others release theirs, or a node joins",
            *(agent_id, now - since, cpus, n_cpus, n_free),
        )
