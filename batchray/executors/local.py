"""The executor that runs attempts in this process, without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from batchray.agents import AttemptRunner, Blocked, CheckpointedRun, SaveCheckpoints, pump_checkpoints
from batchray.config import AgentSet
from batchray.executors.base import AttemptSpec, ControlChannel
from batchray.executors.blocking import BlockingBoard
from batchray.executors.provider_board import REPORT_S, ProviderBoard
from batchray.support.descriptors import connections_that_fit


class LocalExecutor:
    """Runs every attempt on the driver's own event loop: for tests, debugging, and as the baseline of benchmarks."""

    def __init__(self) -> None:
        self._runner = AttemptRunner(on_provider_wait=self._on_provider_wait, on_blocked=self._on_blocked)
        self.providers, self.blocking = ProviderBoard(), BlockingBoard()
        self._reporting: asyncio.Task[None] | None = None

    def _on_blocked(self, blocked: Blocked | None) -> None:
        if blocked is None:
            self.blocking.clear()
        else:
            self.blocking.put(blocked.owner.job_id, [blocked])

    def check(self, agents: AgentSet) -> None:
        """Accept all agents: placement has no meaning in one process."""

    async def run(self, spec: AttemptSpec, save: SaveCheckpoints) -> bytes:
        """Run one attempt here."""
        if not spec.agent.agent.keeps_steps:
            return await self._runner.run_attempt(spec.agent, spec.encode())
        run = CheckpointedRun(lambda sink: self._runner.run_attempt(spec.agent, spec.encode(), sink))
        try:
            return await pump_checkpoints(run.fetch, save)
        finally:
            await run.close()

    def is_alive(self) -> bool:
        """Always true."""
        return True

    @property
    def max_in_flight(self) -> int:
        """For how many requests this process has file descriptors."""
        return connections_that_fit()

    def control_channels(self, job_id: str) -> Sequence[ControlChannel]:
        """Return none: the driver and its job are in this process."""
        return ()

    async def close(self) -> None:
        """Close the model clients."""
        if self._reporting is not None:
            self._reporting.cancel()
        await self._runner.close()

    def _on_provider_wait(self) -> None:
        self.providers.report(self, self._runner.provider_waits())
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.ensure_future(self._report_repeatedly())

    async def _report_repeatedly(self) -> None:
        """Report again while calls wait: their number changes, and a provider opens again silently."""
        while waits := self._runner.provider_waits():
            self.providers.report(self, waits)
            await asyncio.sleep(REPORT_S)
        self.providers.forget(self)
