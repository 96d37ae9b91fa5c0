"""One request in, one outcome out, as bytes: what every lane, process and the local executor calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from batchray.agents.base import AgentRunner, ExecutionMarker, Run, unmarked
from batchray.agents.build import Clients, build_agent
from batchray.agents.checkpoints import Checkpoint, CheckpointSink
from batchray.agents.tools import encodable, is_cancelled
from batchray.config import BoundAgent
from batchray.errors import ConfigError, DeadlineExceededError, RequestError
from batchray.schema import AgentRequest, ErrorInfo, Message, StopReason, status_of

logger = logging.getLogger(__name__)

_MESSAGES = TypeAdapter(list[Message])
_MAX_AGENTS = 1024
_MAX_ERROR_CHARS = 4000


class AttemptContext(BaseModel):
    """What an item goes on with: a conversation, the agent's memory as far as it was edited, and its own done steps."""

    model_config = ConfigDict(frozen=True)

    history: list[Message] = Field(default_factory=list)
    memory: dict[str, str] = Field(default_factory=dict)
    steps: list[Checkpoint] = Field(default_factory=list)


class AttemptInput(BaseModel):
    """A request on its way to where it runs, and how long it may take; its agent's deadline, where that is not said."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    index: int
    attempt: int
    request: AgentRequest
    left_s: float | None = None
    context: AttemptContext | None = None


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """What came back of one attempt.  `head` is small and parsed; `messages` stays a JSON array in bytes.

    `pending` are the tool calls that wait for the caller, `memory` the agent's memory as far as it was ever edited.
    """

    index: int
    attempt: int
    status: str
    stop_reason: str
    error: dict[str, str] | None
    usage: dict[str, int]
    ttft_ns: int | None
    duration_ns: int
    messages: bytes
    pending: Sequence[str] = ()
    memory: Mapping[str, str] = field(default_factory=dict)


def encode_input(
    job_id: str, index: int, attempt: int, request: bytes, context: bytes = b"", left_s: float | None = None
) -> bytes:
    """Return an item as JSON around its request's own bytes; `context` is a Context in JSON, or empty."""
    item: dict[str, Any] = {"job_id": job_id, "index": index, "attempt": attempt, "request": orjson.Fragment(request)}
    if context:
        item["context"] = orjson.Fragment(context)
    if left_s is not None:
        item["left_s"] = left_s
    return orjson.dumps(item)


def read_report(reported: bytes) -> AttemptReport:
    """Read what `AttemptRunner.answer` wrote: a line of JSON about the attempt, a line with its messages."""
    head, _, messages = reported.partition(b"\n")
    return AttemptReport(**orjson.loads(head), messages=messages)


class _Unbuilt:
    """What stands in for an agent that could not be built."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def run(self, run: Run) -> StopReason:
        raise self._error


class AttemptRunner:
    """Runs requests on one event loop; agents and clients are built on first use and kept."""

    def __init__(self, guard: ExecutionMarker = unmarked) -> None:
        self._clients, self._guard = Clients(), guard
        self._agents: OrderedDict[BoundAgent, AgentRunner] = OrderedDict()

    def agent(self, bound: BoundAgent) -> AgentRunner:
        """Return the running agent for a configured one.  Raises ConfigError where it cannot be built."""
        runner = self._agents.get(bound)
        if runner is None:
            runner = self._agents[bound] = build_agent(bound, self._clients)
            if len(self._agents) > _MAX_AGENTS:
                self._agents.popitem(last=False)
        return runner

    def _ready(self, bound: BoundAgent, item: AttemptInput) -> AgentRunner:
        """Return the running agent; to import its code is code of the request that comes first."""
        if (runner := self._agents.get(bound)) is not None:
            return runner
        with self._guard(item.job_id, item.index):
            return self.agent(bound)

    def prepare(self, bound: BoundAgent) -> None:
        """Build an agent ahead of its requests; where that cannot be done, they all fail with what this raised."""
        try:
            self.agent(bound)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever its code raises as it is imported
            self._agents[bound] = _Unbuilt(error)

    async def answer(self, bound: BoundAgent, item: bytes, sink: CheckpointSink | None = None) -> bytes:
        """Run one request: JSON in, JSON out.  Whatever goes wrong with it is an outcome; only a cancel is raised.

        `sink` takes what is done after each step, where that is to be kept.
        """
        started_ns = time.monotonic_ns()
        parsed = AttemptInput.model_validate_json(item)
        left_s = bound.agent.deadline_s if parsed.left_s is None else parsed.left_s
        run = Run(
            parsed.job_id,
            parsed.index,
            parsed.request,
            started_ns / 1e9 + left_s,
            self._guard,
            started_ns=started_ns,
            history=parsed.context.history if parsed.context else [],
            edited_memory=parsed.context.memory if parsed.context else {},
            sink=sink,
        )
        if parsed.context:
            run.restore(parsed.context.steps)
        error: RequestError | None = None
        try:
            async with asyncio.timeout(left_s) as limit:
                run.limit = limit
                stop_reason = await self._ready(bound, parsed).run(run)
        except RequestError as raised:
            error = raised
        except asyncio.CancelledError as raised:
            if is_cancelled():
                raise
            error = _as_request_error(raised)
        except (Exception, SystemExit) as raised:  # noqa: BLE001  # whatever an agent raises is this request's outcome
            error = _deadline_error(bound) if limit.expired() else _as_request_error(raised)
        if error is not None:
            stop_reason = StopReason(error.stop_reason)
            logger.debug("request failed: %s", error.type, extra={"job_id": parsed.job_id, "index": parsed.index})
        return _encode_report(parsed, run, stop_reason, error)

    async def close(self) -> None:
        """Close the model clients."""
        await self._clients.close()


def _deadline_error(bound: BoundAgent) -> DeadlineExceededError:
    return DeadlineExceededError("deadline_exceeded", f"not done within its deadline of {bound.agent.deadline_s:g} s")


def _as_request_error(error: BaseException) -> RequestError:
    kind = "config_error" if isinstance(error, ConfigError) else type(error).__name__
    return RequestError(kind, str(error) or repr(error))


def _encode_report(item: AttemptInput, run: Run, stop_reason: StopReason, error: RequestError | None) -> bytes:
    failure = ErrorInfo(type=error.type, message=encodable(error.message)[:_MAX_ERROR_CHARS]) if error else None
    head: dict[str, Any] = {
        "index": item.index,
        "attempt": item.attempt,
        "status": status_of(stop_reason),
        "stop_reason": stop_reason,
        "error": failure.model_dump() if failure else None,
        "usage": run.usage.model_dump(),
        "ttft_ns": run.ttft_ns,
        "duration_ns": time.monotonic_ns() - run.started_ns,
    }
    if run.pending:
        head["pending"] = run.pending
    if run.memory.edited:
        head["memory"] = run.memory.edited
    return orjson.dumps(head) + b"\n" + _MESSAGES.dump_json(run.messages, exclude_none=True)
