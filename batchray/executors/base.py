"""The seam between the driver and wherever a request runs, and the executor that needs no cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from batchray.agents import SaveCheckpoints, encode_input
from batchray.config import AgentSet, BoundAgent


@dataclass(frozen=True, slots=True)
class AttemptSpec:
    """One attempt at one item, as the driver spawns it.

    `left_s` is how long it may run, in seconds: its agent's deadline, less what earlier attempts took.
    `is_isolated` asks for a process that no other request shares: for one that may have killed the process it ran in.
    `context` is what it goes on with, an `agents.AttemptContext` in JSON; empty where it starts anew.
    """

    agent: BoundAgent
    job_id: str
    index: int
    attempt: int
    request: bytes
    left_s: float
    is_isolated: bool = False
    context: bytes = b""

    @property
    def key(self) -> str:
        """Name the attempt, as in a file's name."""
        return f"{self.job_id}-{self.index}-{self.attempt}"

    def encode(self) -> bytes:
        """Return the item as the agent's side reads it."""
        return encode_input(self.job_id, self.index, self.attempt, self.request, self.context, self.left_s)


class ControlChannel(Protocol):
    """A way in which others watch and steer a running job."""

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any] | None:
        """Hand out a snapshot; return the wishes: `is_paused`, `is_canceled`, `max_in_flight`.

        None where nobody answers now; what was asked for before is as it was.
        """
        ...

    def close(self) -> None:
        """The job has ended, or is no longer run here."""
        ...


class Executor(Protocol):
    """Runs attempts, as many at once as the driver asks for."""

    async def run(self, spec: AttemptSpec, keep: SaveCheckpoints) -> bytes:
        """Run one attempt and return its report.  A cancelled wait stops what runs.

        `keep` is given what the attempt has done so far, after each step, where its agent's steps are kept.
        Raises WorkerDiedError when the process that ran it ended, TimeoutError when it has not answered by its
        deadline, and ClusterError when nothing can run any more.
        """
        ...


class ManagedExecutor(Executor, Protocol):
    """An executor together with what it runs on, as the one who started it sees it."""

    def check(self, agents: AgentSet) -> None:
        """Raise ConfigError where an agent could never run here."""
        ...

    def is_alive(self) -> bool:
        """Whether it can run anything any more."""
        ...

    def control_channels(self, job_id: str) -> Sequence[ControlChannel]:
        """Return the ways in which a job that runs here is watched and steered."""
        ...

    async def close(self) -> None:
        """End what this executor started."""
        ...
