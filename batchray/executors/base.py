"""The interface between the driver and whatever runs a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from batchray.agents import SaveCheckpoints, encode_input
from batchray.config import AgentSet, BoundAgent
from batchray.executors.blocking import BlockingBoard
from batchray.executors.provider_board import ProviderBoard


@dataclass(frozen=True, slots=True)
class AttemptSpec:
    """One attempt at one item, as the driver spawns it.

    `left_s` is how long it may run, in seconds: its agent's deadline, less the time that earlier attempts took.
    `is_isolated` asks for a process that no other request shares; a suspect gets one, because it may have crashed its
    last process.  `context` is what the attempt continues from, an `agents.AttemptContext` in JSON; empty if it starts
    from the beginning.  `grace_s` is how long after its deadline a process has to report.  `is_awaited`: a client waits
    for it, so that a wait for its provider moves no deadline of its process.
    """

    agent: BoundAgent
    job_id: str
    index: int
    attempt: int
    request: bytes
    left_s: float
    is_isolated: bool = False
    context: bytes = b""
    grace_s: float = 30.0
    is_awaited: bool = False

    @property
    def key(self) -> str:
        """The attempt's name, fit for a file name."""
        return f"{self.job_id}-{self.index}-{self.attempt}"

    def encode(self) -> bytes:
        """Return the item as the agent's side reads it."""
        return encode_input(self.job_id, self.index, self.attempt, self.request, self.context, self.left_s)


class ControlChannel(Protocol):
    """A way for others to watch and steer a running job."""

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any] | None:
        """Publish a snapshot; return the control request: `is_paused`, `is_canceled`, `max_in_flight`.

        None if the other end does not answer now; an earlier request stays in force.
        """
        ...

    def close(self) -> None:
        """End the channel: the job has ended, or no longer runs here."""
        ...


def own_pause(before: str | None, snapshot: Mapping[str, Any]) -> dict[str, bool]:
    """Return the control request that a job has made of itself between two snapshots; `before` is its earlier reason.

    A channel adds it to those of others, so that the next unpause is a change, which is carried out.
    """
    now = snapshot.get("paused_because")
    return {"is_paused": now is not None} if now != before else {}


class Executor(Protocol):
    """Runs attempts, as many at once as the driver starts."""

    async def run(self, spec: AttemptSpec, save: SaveCheckpoints) -> bytes:
        """Run one attempt and return its report.  Cancelling the call stops the attempt.

        If the agent keeps its steps, `save` gets the attempt's checkpoints after each step.  Raises WorkerDiedError if
        the process that ran the attempt ended, TimeoutError if it has not answered by its deadline, and ClusterError if
        nothing can run any more.
        """
        ...


class ManagedExecutor(Executor, Protocol):
    """An executor and what it runs on, as the code that started it sees it."""

    providers: ProviderBoard
    """The providers that hold back its calls."""
    blocking: BlockingBoard
    """The requests that block an event loop which they share."""

    def check(self, agents: AgentSet) -> None:
        """Raise ConfigError if an agent can never run here."""
        ...

    def is_alive(self) -> bool:
        """Whether it can still run anything."""
        ...

    @property
    def max_in_flight(self) -> int:
        """How many requests, with one connection each, can run at once."""
        ...

    def control_channels(self, job_id: str) -> Sequence[ControlChannel]:
        """Return the channels by which a job that runs here is watched and steered."""
        ...

    async def close(self) -> None:
        """End what this executor started."""
        ...
