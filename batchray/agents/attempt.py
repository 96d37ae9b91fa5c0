"""One attempt at an item: bytes in, a report in bytes out.  Called by lanes, processes and the local executor."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from batchray.agents.base import AgentRunner, ExecutionMarker, Run, unmarked
from batchray.agents.build import Clients, build_agent
from batchray.agents.checkpoints import Checkpoint, CheckpointSink
from batchray.agents.failures import Failure, Masks, failure_of
from batchray.agents.imports import Imports
from batchray.agents.loop_watch import Blocked, LoopWatch
from batchray.agents.user_code import encodable, is_cancelled, protect_loop
from batchray.config import BoundAgent, MemoryBlock
from batchray.errors import DeadlineExceededError, RequestError
from batchray.schema import AgentRequest, Message, ProviderWait, StopReason, status_of
from batchray.schema.outcomes import OutcomeData
from batchray.support.captured_output import route_streams

logger = logging.getLogger(__name__)

_MAX_AGENTS = 1024


class AttemptContext(BaseModel):
    """The state that an attempt continues from: conversation, edited memory, checkpoints of earlier attempts.

    `blocks` are the agent's memory blocks as the store has them now; None: as the agent's settings say.
    """

    model_config = ConfigDict(frozen=True)

    history: list[Message] = Field(default_factory=list)
    memory: dict[str, str] = Field(default_factory=dict)
    blocks: list[MemoryBlock] | None = None
    steps: list[Checkpoint] = Field(default_factory=list)


class AttemptInput(BaseModel):
    """The input of an attempt.  `left_s` is the time that it has; None means the agent's whole deadline."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    index: int
    attempt: int
    request: AgentRequest
    left_s: float | None = None
    context: AttemptContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReport(OutcomeData):
    """The result of one attempt.

    `pending` are ids of the tool calls that wait for the caller; `memory` and `memory_bases` are those of `RunMemory`.
    `shared_failure` is the `provider` and the `kind` (the error's type) of a failure that all requests of that provider
    meet, such as a wrong key; None for any other.
    """

    index: int
    attempt: int
    pending: Sequence[str] = ()
    memory: Mapping[str, str] = field(default_factory=dict)
    memory_bases: Mapping[str, str] = field(default_factory=dict)
    shared_failure: Mapping[str, str] | None = None


def encode_input(
    job_id: str, index: int, attempt: int, request: bytes, context: bytes = b"", left_s: float | None = None
) -> bytes:
    """Return an AttemptInput as JSON; `request` is inserted unchanged, and so is `context`, an AttemptContext."""
    item: dict[str, Any] = {"job_id": job_id, "index": index, "attempt": attempt, "request": orjson.Fragment(request)}
    if context:
        item["context"] = orjson.Fragment(context)
    if left_s is not None:
        item["left_s"] = left_s
    return orjson.dumps(item)


def read_report(reported: bytes) -> AttemptReport:
    """Parse a report: a line of JSON about the attempt, then a line with its messages."""
    head, _, messages = reported.partition(b"\n")
    return AttemptReport(**orjson.loads(head), messages=messages)


class _FailedAgent:
    """Takes the place of an agent that could not be built: each of its requests fails with that error."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def run(self, run: Run) -> StopReason:
        raise self._error.with_traceback(None)  # or it would grow with each request


class AttemptRunner:
    """Runs attempts on one event loop.  Agents and clients are built on first use and cached.

    `on_provider_wait` is called when the list of `provider_waits` changes; `while_held` is entered while a run waits
    for its provider.  `on_blocked` is called in a thread when a request blocks the loop (see `LoopWatch`), which is not
    watched without it.
    """

    def __init__(
        self,
        mark_executing: ExecutionMarker = unmarked,
        on_provider_wait: Callable[[], None] = lambda: None,
        while_held: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_blocked: Callable[[Blocked | None], None] | None = None,
    ) -> None:
        self._watch = LoopWatch(on_blocked) if on_blocked is not None else None
        self._clients, self._mark_executing = Clients(on_provider_wait), mark_executing
        self._while_held = while_held
        self._agents: OrderedDict[BoundAgent, AgentRunner] = OrderedDict()
        self._imports: Imports[AgentRunner] = Imports()
        route_streams()

    def agent(self, bound: BoundAgent) -> AgentRunner:
        """Return the runner of a configured agent.  Raises ConfigError if it cannot be built."""
        runner = self._agents.get(bound)
        return self._keep(bound, build_agent(bound, self._clients)) if runner is None else runner

    def _keep(self, bound: BoundAgent, runner: AgentRunner) -> AgentRunner:
        runner = self._agents.setdefault(bound, runner)
        if len(self._agents) > _MAX_AGENTS:
            self._agents.popitem(last=False)
        return runner

    async def _import(self, bound: BoundAgent, item: AttemptInput) -> AgentRunner:
        """Build an agent, in a thread if it has code; its import counts as code of the first request."""

        def build() -> AgentRunner:
            with self._mark_executing(item.job_id, item.index):
                return build_agent(bound, self._clients)

        try:
            if not _has_code(bound):
                return self.agent(bound)
            return self._keep(bound, await self._imports.run(bound, build))
        except Exception as error:  # noqa: BLE001  # an import may raise anything
            return _FailedAgent(error)

    def prepare(self, bound: BoundAgent) -> None:
        """Build an agent before its requests arrive.  If that fails, each of them fails with the same error."""
        try:
            self.agent(bound)
        except Exception as error:  # noqa: BLE001  # whatever it is, each request fails with it
            self._agents[bound] = _FailedAgent(error)

    async def run_attempt(self, bound: BoundAgent, item: bytes, sink: CheckpointSink | None = None) -> bytes:
        """Run one request: JSON in, JSON out.  Any failure becomes an outcome; only a cancel is raised.

        `sink` takes a checkpoint after each step; None saves none.  Its time counts from when its code is imported.
        """
        protect_loop(asyncio.get_running_loop())
        parsed = AttemptInput.model_validate_json(item)
        agent = self._agents.get(bound) or await self._import(bound, parsed)
        started_ns = time.monotonic_ns()
        left_s = bound.agent.deadline_s if parsed.left_s is None else parsed.left_s
        run = Run(
            parsed.job_id,
            parsed.index,
            parsed.request,
            started_ns / 1e9 + left_s,
            self._mark_executing,
            started_ns=started_ns,
            history=parsed.context.history if parsed.context else [],
            edited_memory=parsed.context.memory if parsed.context else {},
            stored_blocks=parsed.context.blocks if parsed.context else None,
            sink=sink,
            masks=Masks(bound),
            while_held=self._while_held,
        )
        if parsed.context:
            run.restore(parsed.context.steps)
        failure: Failure | None = None
        try:
            with self._watch if self._watch is not None and _has_code(bound) else nullcontext():
                async with asyncio.timeout(left_s) as limit:
                    run.limit = limit
                    stop_reason = await agent.run(run)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as raised:  # any error of an agent is this request's outcome, a panic of a library too
            if isinstance(raised, asyncio.CancelledError) and is_cancelled():
                raise
            is_late = limit.expired() and not isinstance(raised, RequestError)
            failure = failure_of(_deadline_error(bound) if is_late else raised, run.masks)
            stop_reason = StopReason(failure.stop_reason)
            logger.debug("request failed: %s", failure.type, extra={"job_id": parsed.job_id, "index": parsed.index})
        return _encode_report(parsed, run, stop_reason, failure)

    def provider_waits(self) -> list[ProviderWait]:
        """Return what holds model calls back, for each provider that takes none now, or fewer than are asked for."""
        return self._clients.provider_waits()

    async def close(self) -> None:
        """Close the model clients."""
        if self._watch is not None:
            self._watch.close()
        await self._clients.close()


def _has_code(bound: BoundAgent) -> bool:
    return bound.agent.run is not None or bool(bound.agent.tools)


def _deadline_error(bound: BoundAgent) -> DeadlineExceededError:
    return DeadlineExceededError("deadline_exceeded", f"not done within its deadline of {bound.agent.deadline_s:g} s")


def failed_report(item: bytes, error: BaseException) -> bytes:
    """Return the report of an attempt whose agent could not be loaded."""
    parsed = AttemptInput.model_validate_json(item)
    failure = failure_of(error, Masks())
    return _encode_report(parsed, Run(parsed.job_id, parsed.index, parsed.request), StopReason.ERROR, failure)


def _error_fields(failure: Failure, run: Run) -> dict[str, str]:
    """Return a failure as it is stored: an `ErrorInfo`, and what the code of a function agent has written."""
    fields = {"type": failure.type, "message": encodable(failure.message)}
    if failure.traceback is not None:
        fields["traceback"] = failure.traceback
    for name in ("stdout", "stderr"):
        if text := getattr(run.output, name):
            fields[name] = run.masks.clean(text)
    return fields


def _encode_report(item: AttemptInput, run: Run, stop_reason: StopReason, failure: Failure | None) -> bytes:
    head: dict[str, Any] = {
        "index": item.index,
        "attempt": item.attempt,
        "status": status_of(stop_reason),
        "stop_reason": stop_reason,
        "error": _error_fields(failure, run) if failure else None,
        "usage": vars(run.usage),
        "ttft_ns": run.ttft_ns,
        "duration_ns": time.monotonic_ns() - run.started_ns,
    }
    if failure is not None and failure.shared_by:
        head["shared_failure"] = {"provider": failure.shared_by, "kind": failure.type}
    if run.pending:
        head["pending"] = run.pending
    if run.memory.edited:
        head["memory"], head["memory_bases"] = run.memory.edited, run.memory.bases
    return b"%b\n[%b]" % (orjson.dumps(head), b",".join(run.encoded_messages))
