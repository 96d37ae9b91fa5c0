"""The executor that runs attempts in this process, without a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from batchray.agents import AttemptRunner, CheckpointedRun, SaveCheckpoints, pump_checkpoints
from batchray.config import AgentSet
from batchray.executors.base import AttemptSpec, ControlChannel


class LocalExecutor:
    """Runs every attempt on the driver's own event loop: for tests, debugging, and as the baseline of benchmarks."""

    def __init__(self) -> None:
        self._answerer = AttemptRunner()

    def check(self, agents: AgentSet) -> None:
        """Accept all: placement means nothing in one process."""

    async def run(self, spec: AttemptSpec, keep: SaveCheckpoints) -> bytes:
        """Run one attempt here."""
        if not spec.agent.agent.keeps_steps:
            return await self._answerer.run_attempt(spec.agent, spec.encode())
        run = CheckpointedRun(lambda sink: self._answerer.run_attempt(spec.agent, spec.encode(), sink))
        try:
            return await pump_checkpoints(run.fetch, keep)
        finally:
            await run.close()

    def is_alive(self) -> bool:
        """Always."""
        return True

    def control_channels(self, job_id: str) -> Sequence[ControlChannel]:
        """Return none: there is nobody else in this process."""
        return ()

    async def close(self) -> None:
        """Close the model clients."""
        await self._answerer.close()
