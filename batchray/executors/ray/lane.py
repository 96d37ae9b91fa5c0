"""The workers that run requests on the cluster: a lane, which many requests share, or a process for one request."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from functools import partial

import ray
from ray import cloudpickle

from batchray.agents import AttemptRunner, CheckpointSink, Imports, RunUpdate, UserCodeError, contained, failed_report
from batchray.config import BoundAgent
from batchray.errors import ConfigError
from batchray.executors.ray.activity_log import (
    ActivityLog,
    CrashRecord,
    delete_records,
    exit_cause_of,
    open_exit_report,
    read_crash_record,
)
from batchray.executors.ray.checkpointed_runs import CheckpointBatch, CheckpointedRuns, WaitReport, run_isolated
from batchray.executors.ray.exit_report import ExitCause
from batchray.executors.ray.internals import session_directory
from batchray.executors.ray.job_actor import BlockingReports
from batchray.executors.ray.provider_reports import LaneReport, ProviderReports
from batchray.executors.ray.run_registry import RunRegistry, Start, pack_reports, unpack_call
from batchray.executors.ray.worker_log import WorkerLog
from batchray.support.captured_output import TO_STDERR
from batchray.support.descriptors import connections_that_fit, raise_descriptor_limit
from batchray.support.interpreter import tune_interpreter

_MAX_AGENTS = 1024
_GRACE_S = 10.0
# Ray's default for its workers.  A local cluster starts them without, so a process that computes sets it itself.
_NICENESS = 15


def pack(bound: BoundAgent) -> bytes:
    """Serialize an agent, functions of a notebook included.  Raises ConfigError if that is impossible."""
    try:
        return _dumps(bound)
    except Exception as error:  # objects that a function closes over may raise anything
        reason = f"its function cannot be sent to a lane: {error}"
        raise ConfigError(f"agent {bound.agent.id!r}: {reason}") from error


def _dumps(bound: BoundAgent) -> bytes:
    return cloudpickle.dumps(bound)  # type: ignore[no-untyped-call,no-any-return]


class Lane:
    """Runs many requests at once on one event loop.  A call carries all it needs, so any lane can take it."""

    def __init__(self, job_actor: str) -> None:
        """`job_actor` is the name of the actor that is told what blocks the lane."""
        self._activity_log = ActivityLog(_actor_id(), session_directory())
        blocking = BlockingReports(_actor_id(), job_actor)
        self._runner = AttemptRunner(self._activity_log.executing, self._on_provider_wait, on_blocked=blocking.report)
        self._loop: asyncio.AbstractEventLoop | None = None
        log = WorkerLog(self._on_warning)
        logging.getLogger("batchray").addHandler(log)
        self._reports = ProviderReports(self._runner.provider_waits, log)
        self._runs, self._checkpointed = RunRegistry(), CheckpointedRuns()
        self._agents: OrderedDict[bytes, BoundAgent] = OrderedDict()
        self._imports: Imports[BoundAgent] = Imports()
        tune_interpreter()
        raise_descriptor_limit()
        gc.freeze()  # the imported modules stay; otherwise every full collection scans them

    async def exchange(self, packed: bytes) -> bytes:
        """Start these runs, and return the reports of runs that have ended, as soon as there are some.

        A run is an agent and an item in, a report out.  A request's failure is in the report.  A second start of an
        attempt, made because a call was lost, joins the same run.
        """
        given, asked = unpack_call(packed)
        for start in given:
            self._runs.start(start.key, partial(self._run, start))
        for key in asked:
            self._runs.ask(key)
        return pack_reports(await self._runs.reports())

    def _run(self, start: Start) -> Awaitable[bytes]:
        """Run one request; `collect` returns its checkpoints if it keeps its steps."""
        run = partial(self._run_attempt, start)
        return self._checkpointed.run(start.key, run) if start.keeps_steps else run()

    async def _run_attempt(self, start: Start, sink: CheckpointSink | None = None) -> bytes:
        packed = start.agent
        try:
            bound = self._agents.get(packed)
            if bound is None:
                bound = await self._imports.run(packed, lambda: self._unpack(packed, start.key))
        except UserCodeError as error:
            return failed_report(start.item, error)
        return await self._runner.run_attempt(bound, start.item, sink)

    async def stop(self, keys: list[str]) -> None:
        """Stop these attempts; one whose call has not arrived yet will not start."""
        self._checkpointed.drop(keys)
        self._runs.stop(keys)

    async def collect(self, n_saved: dict[str, int]) -> CheckpointBatch:
        """Mark checkpoints as stored, and return those that are not, as soon as there are some."""
        return await self._checkpointed.collect(n_saved)

    async def report(self, is_waiting: bool) -> LaneReport:
        """Return what holds back calls to providers, and the newest warnings; see `ProviderReports.next`."""
        self._loop = asyncio.get_running_loop()  # an actor is made outside of it
        return await self._reports.next(is_waiting)

    async def identity(self) -> tuple[str, str, int, int]:
        """Return the ids of its actor, its node and its process, and for how many connections it has descriptors."""
        return _actor_id(), _node_id(), os.getpid(), connections_that_fit()

    async def read_crash_record(self, actor_id: str) -> CrashRecord | None:
        """Return what another lane left when it died, if it was on this node."""
        return read_crash_record(session_directory(), actor_id)

    async def exit_cause_of(self, key: str) -> ExitCause | None:
        """Return why a process of `run_in_process` died, if it was on this node."""
        return exit_cause_of(session_directory(), key)

    async def delete_records(self, key: str) -> None:
        """Delete what a lane or a process of this node left when it died; its driver has read it."""
        delete_records(session_directory(), key)

    async def close(self) -> None:
        """Close connections and files; the driver ends the actor after this."""
        await self._runner.close()
        self._activity_log.close()

    def _on_provider_wait(self) -> None:
        self._reports.set_changed()

    def _on_warning(self) -> None:
        """Report a warning, which may come from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._reports.set_changed)

    def _unpack(self, packed: bytes, key: str) -> BoundAgent:
        """Deserialize an agent in the name of the attempt.  It may import modules of users, and raise UserCodeError."""
        job_id, index, _ = key.rsplit("-", 2)
        with self._activity_log.executing(job_id, int(index)), contained(TO_STDERR):
            bound: BoundAgent = cloudpickle.loads(packed)
        self._agents[packed] = bound
        if len(self._agents) > _MAX_AGENTS:
            self._agents.popitem(last=False)
        return bound


# Attempts are counted in the store, never by Ray.  Ray would reuse a worker: its next request would find modules that
# the last one has changed, and clients that are bound to the last one's event loop.  A new worker costs 1 s of CPU.
@ray.remote(max_retries=0, max_calls=1)
def run_in_process(packed: bytes, item: bytes, key: str) -> Iterator[str | RunUpdate | WaitReport | None]:
    """Run one request in a worker process of its own; yield the id of its node, then what `run_isolated` yields.

    The process ends if blocking code outlives the deadline, which starts again after each step.  `key` names the exit
    report for the lanes of its node.
    """
    raise_descriptor_limit()
    with _reporting_exit(key):
        yield _node_id()  # before its code is imported, which may take long, or forever
        try:
            with contained(TO_STDERR):
                bound: BoundAgent = cloudpickle.loads(packed)
        except UserCodeError as error:
            yield from (None, RunUpdate((), failed_report(item, error)))
            return
        life_s = bound.agent.deadline_s + _GRACE_S
        yield from run_isolated(bound, item, partial(_hard_deadline, life_s), partial(_no_hard_deadline, life_s))


@contextmanager
def _reporting_exit(key: str) -> Iterator[None]:
    """Write an exit report of this process.  Its priority is below that of the driver and the lanes."""
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), _NICENESS))
    report = open_exit_report(session_directory(), key)
    try:
        yield
    finally:
        report.close()


@contextmanager
def _hard_deadline(life_s: float) -> Iterator[None]:
    """End this process if blocking code of a request outlives its deadline."""
    faulthandler.dump_traceback_later(life_s, exit=True)  # a thread in C, which needs no interpreter lock
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _no_hard_deadline(life_s: float) -> Iterator[None]:
    """Suspend the hard deadline while the request waits for its provider; after that it starts again."""
    faulthandler.cancel_dump_traceback_later()
    try:
        yield
    finally:
        faulthandler.dump_traceback_later(life_s, exit=True)


def _actor_id() -> str:
    return str(ray.get_runtime_context().get_actor_id())


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())
