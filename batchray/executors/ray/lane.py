"""The two places on the cluster that run a request: a lane, which many share, and a process, which one has alone."""

from __future__ import annotations

import faulthandler
import gc
import os
from collections import OrderedDict
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray._private import worker as ray_worker

from batchray.agents import AttemptRunner, CheckpointSink, RunUpdate
from batchray.config import BoundAgent
from batchray.errors import ConfigError
from batchray.executors.ray.activity_log import (
    ActivityLog,
    CrashRecord,
    discard_records,
    exit_cause_of,
    open_exit_report,
    read_crash_record,
)
from batchray.executors.ray.checkpointed_runs import CheckpointBatch, CheckpointedRuns, run_isolated
from batchray.executors.ray.exit_report import ExitCause
from batchray.executors.ray.run_registry import RunRegistry
from batchray.support.interpreter import tune_interpreter

_MAX_AGENTS = 1024
_GRACE_S = 10.0
# What Ray gives its workers; in a cluster of our own those that compute have to take it by themselves.
_NICENESS = 15


def pack(bound: BoundAgent) -> bytes:
    """Return an agent as bytes, functions of a notebook included.  Raises ConfigError for one that cannot travel."""
    try:
        return _dumps(bound)
    except Exception as error:  # whatever the objects that a function closes over raise
        reason = f"its function cannot be sent to a lane: {error}"
        raise ConfigError(f"agent {bound.agent.id!r}: {reason}") from error


def _dumps(bound: BoundAgent) -> bytes:
    return cloudpickle.dumps(bound)  # type: ignore[no-untyped-call,no-any-return]


class Lane:
    """Runs many requests at once on one event loop.  Every call brings all it needs, so any other lane can take it."""

    def __init__(self) -> None:
        self._recorder = ActivityLog(_actor_id(), _node_directory())
        self._answerer = AttemptRunner(self._recorder.executing)
        self._runs, self._stepped = RunRegistry(), CheckpointedRuns()
        self._agents: OrderedDict[bytes, BoundAgent] = OrderedDict()
        tune_interpreter()
        gc.freeze()  # what Ray and we have imported stays; without this every full collection walks through it

    async def run(self, packed: bytes, item: bytes, key: str) -> bytes:
        """Run one request: an agent and an item in, a report out.  A request's failure is in the report.

        `key` names the attempt: called for again, because the answer got lost, it is the same run.
        """
        bound = self._unpacked(packed, key)
        return await self._runs.run(key, lambda: self._answerer.run_attempt(bound, item))

    async def run_in_steps(self, packed: bytes, item: bytes, key: str) -> bytes:
        """Run one request as `run` does; what it has done after each step is to be collected."""
        bound = self._unpacked(packed, key)

        def start(sink: CheckpointSink) -> Awaitable[bytes]:
            return self._answerer.run_attempt(bound, item, sink)

        return await self._runs.run(key, lambda: self._stepped.run(key, start))

    async def stop(self, keys: list[str]) -> None:
        """Stop these attempts; one that has not come yet will not start."""
        self._stepped.drop(keys)
        self._runs.stop(keys)

    async def collect(self, n_kept: dict[str, int]) -> CheckpointBatch:
        """Say how much of each request is kept, and return what is not, as soon as there is something."""
        return await self._stepped.collect(n_kept)

    async def identity(self) -> tuple[str, str, int]:
        """Return the ids of its actor, its node and its process."""
        return _actor_id(), _node_id(), os.getpid()

    async def read_crash_record(self, actor_id: str) -> CrashRecord | None:
        """Return what another lane left behind when it died, if that was on this node."""
        return read_crash_record(_node_directory(), actor_id)

    async def exit_cause_of(self, key: str) -> ExitCause | None:
        """Return why a process of `run_in_process` died, if that was on this node."""
        return exit_cause_of(_node_directory(), key)

    async def discard_records(self, key: str) -> None:
        """Forget what a lane or a process of this node left behind: its driver has been told."""
        discard_records(_node_directory(), key)

    async def close(self) -> None:
        """Close connections and files; the actor is ended after it."""
        await self._answerer.close()
        self._recorder.close()

    def _unpacked(self, packed: bytes, key: str) -> BoundAgent:
        """Return an agent; what its functions refer to may be imported for it, on behalf of the attempt."""
        bound = self._agents.get(packed)
        if bound is None:
            job_id, index, _ = key.rsplit("-", 2)
            with self._recorder.executing(job_id, int(index)):
                bound = self._agents[packed] = cloudpickle.loads(packed)
            if len(self._agents) > _MAX_AGENTS:
                self._agents.popitem(last=False)
        return bound


@ray.remote(max_retries=0)  # attempts are counted in the store, never by Ray
def run_in_process(packed: bytes, item: bytes, key: str) -> Iterator[str | RunUpdate | None]:
    """Run one request in a worker process of its own; yields the id of its node, then what `run_isolated` does.

    The process ends where code that blocks outlives the deadline, counted anew after each step.  `key` is what the lane
    of its node finds the cause of its death under.
    """
    with _reporting_exit(key):
        yield _node_id()  # before its code is imported, which may take long, or for ever
        bound: BoundAgent = cloudpickle.loads(packed)
        yield from run_isolated(bound, item, partial(_hard_deadline, bound.agent.deadline_s + _GRACE_S))


@contextmanager
def _reporting_exit(key: str) -> Iterator[None]:
    """Let whatever ends this process leave a cause.  What it computes gives way to the driver and the lanes."""
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), _NICENESS))
    kept = open_exit_report(_node_directory(), key)
    try:
        yield
    finally:
        kept.close()


@contextmanager
def _hard_deadline(life_s: float) -> Iterator[None]:
    """End this process where code of a request that blocks outlives its deadline."""
    faulthandler.dump_traceback_later(life_s, exit=True)  # from C: it needs no interpreter
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _actor_id() -> str:
    return str(ray.get_runtime_context().get_actor_id())


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _node_directory() -> Path:
    """Return the directory of Ray's session on this node, which all its processes there share."""
    node: Any = ray_worker.global_worker.node
    return Path(node.get_session_dir_path())
