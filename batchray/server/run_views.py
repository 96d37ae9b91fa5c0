"""Converts stored runs to Letta's runs, steps and messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, cast

import orjson
from pydantic import TypeAdapter

from batchray.agents import completed_work
from batchray.agents.base import input_messages
from batchray.schema import (
    AgentRequest,
    CompletionTokensDetails,
    Feedback,
    LettaMessage,
    Message,
    PromptTokensDetails,
    RequestConfig,
    Run,
    RunStatus,
    RunUsage,
    Step,
    StepMetrics,
    StopReason,
    Usage,
    item_id,
    ordinal_of,
    run_id,
    step_id,
    visible_messages,
)
from batchray.schema.letta_messages import LettaMessageBase
from batchray.schema.visible import letta_messages
from batchray.store import RunPosition, StepFeedback, StoredRun
from batchray.views.results import parse_time

MessageParts = list[LettaMessageBase]
"""The LettaMessages that one stored message becomes; they share its id.  At least one."""

_MESSAGES = TypeAdapter(list[Message])
STATUSES: Mapping[RunStatus, tuple[str, ...]] = {
    RunStatus.CREATED: ("created",),
    RunStatus.RUNNING: ("running",),
    RunStatus.COMPLETED: ("succeeded",),
    RunStatus.FAILED: ("errored", "expired"),
    RunStatus.CANCELLED: ("canceled",),
}
"""The statuses of the store, as in `RunFilter`, that each status of a run stands for."""

_OF_OUTCOME = {stored: status for status, several in STATUSES.items() for stored in several}
_RUN_TYPES = {"batch": "batch", "run": "send_message", "background": "send_message_async"}
_STEP_STATUS: Mapping[RunStatus, Literal["success", "failed", "cancelled"]] = {
    RunStatus.COMPLETED: "success",
    RunStatus.FAILED: "failed",
    RunStatus.CANCELLED: "cancelled",
}


def run_view(run: StoredRun) -> Run:
    """Return a run as Letta's Run."""
    job = run.job
    callback = job if job.is_single else None
    return Run(
        id=run_id(job.id, run.index),
        agent_id=run.agent_id,
        status=_status(run),
        created_at=parse_time(job.created_at),
        completed_at=parse_time(run.finished_at),
        background=job.kind == "background",
        metadata=_metadata(run),
        request_config=_request_config(run.request),
        stop_reason=StopReason(run.stop_reason) if run.stop_reason else None,
        callback_url=callback.callback_url if callback else None,
        callback_sent_at=parse_time(callback.callback_sent_at) if callback else None,
        callback_status_code=callback.callback_status_code if callback else None,
        callback_error=callback.callback_error if callback else None,
        ttft_ns=run.ttft_ns,
        total_duration_ns=run.duration_ns,
    )


def _status(run: StoredRun) -> RunStatus:
    if run.status is None:
        return RunStatus.RUNNING if run.attempts else RunStatus.CREATED
    return _OF_OUTCOME[run.status]


def _metadata(run: StoredRun) -> dict[str, Any]:
    metadata: dict[str, Any] = {"run_type": _RUN_TYPES[run.job.kind], "job_id": run.job.id}
    if not run.job.is_single:
        metadata["batch_item_id"] = item_id(run.job.id, run.index)
    if run.custom_id is not None:
        metadata["custom_id"] = run.custom_id
    if run.error is not None:
        metadata["error"] = {name: run.error[name] for name in ("type", "message")}
    return metadata


def _request_config(request: bytes) -> RequestConfig:
    given = orjson.loads(request)
    return RequestConfig.model_validate({name: given[name] for name in RequestConfig.model_fields if name in given})


def usage_view(counted: Mapping[str, int]) -> RunUsage:
    """Return the tokens of a run."""
    usage = Usage(**counted)
    cached, written = usage.cached_input_tokens, usage.cache_write_tokens
    return RunUsage(
        completion_tokens=usage.completion_tokens,
        prompt_tokens=usage.prompt_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=cached, cache_read_tokens=cached, cache_creation_tokens=written
        )
        if usage.step_count
        else None,
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=usage.reasoning_tokens)
        if usage.step_count
        else None,
    )


@dataclass(frozen=True)
class RunDetails:
    """A run with its request and the messages of its agent, so far if it has not ended."""

    run: StoredRun
    request: AgentRequest
    outputs: list[Message]
    usage: Mapping[str, int]

    @classmethod
    def of(cls, run: StoredRun, checkpoints: Sequence[bytes] = ()) -> RunDetails:
        """Parse a run; `checkpoints` are those of one without an outcome."""
        messages, usage = completed_work(checkpoints) if checkpoints else (run.messages or b"[]", run.usage)
        request = AgentRequest.model_validate_json(run.request)
        return cls(run, request, _MESSAGES.validate_json(messages), usage)

    def conversation(self) -> list[Message]:
        """Return the messages of its request and its agent, as they are stored."""
        created_at = parse_time(self.run.job.created_at)
        assert created_at is not None, "every job has a time"
        return [*input_messages(self.run.job.id, self.run.index, self.request, created_at), *self.outputs]

    def messages(self) -> list[MessageParts]:
        """Return its messages, the request's first, as a client of the request sees them."""
        return _by_message(visible_messages(self.conversation(), self.request))

    @cached_property
    def steps(self) -> list[RunStep]:
        """Return its steps: each a model call, with the tools that it asked for.

        The end of a step of an earlier run, which waited for an answer, is not one of them.
        """
        groups = [list(group) for _, group in groupby(self.outputs, key=lambda message: message.step_id)]
        steps = [RunStep(self, ordinal_of(group[0].id), group) for group in groups if group[0].role != "tool"]
        if self.run.status == "errored" and (not self.outputs or self.outputs[-1].role == "tool"):
            steps.append(RunStep(self, self._next_ordinal(), []))  # the call that failed has left no message
        return steps

    def _next_ordinal(self) -> int:
        return ordinal_of(self.outputs[-1].id) + 1 if self.outputs else self.request.n_input_messages


@dataclass(frozen=True)
class RunStep:
    """A step of a run; `ordinal` is that of its first message."""

    of: RunDetails
    ordinal: int
    messages: list[Message]

    @property
    def id(self) -> str:
        """The step's id."""
        return step_id(self.of.run.job.id, self.of.run.index, self.ordinal)

    @property
    def position(self) -> tuple[RunPosition, int]:
        """Its position among all steps of its user."""
        return self.of.run.position, self.ordinal

    def letta_messages(self) -> list[MessageParts]:
        """Return its messages."""
        return _by_message(part for message in self.messages for part in letta_messages(message))

    def has_model(self, name: str) -> bool:
        """Whether its model has this name, with or without its provider."""
        handle = self._handle or ""
        return name in (handle, handle.partition("/")[2])

    @property
    def _handle(self) -> str | None:
        return next((message.model for message in self.messages if message.model), None)

    def began_at(self) -> str:
        """Return when its first message was made, or when the run failed."""
        if self.messages:
            return self.messages[0].created_at.isoformat(timespec="microseconds")
        return self.of.run.finished_at or self.of.run.job.created_at

    def view(self, said: StepFeedback | None) -> Step:
        """Return it as Letta's Step, with the feedback on it."""
        steps, run = self.of.steps, self.of.run
        is_last = steps[-1].ordinal == self.ordinal
        provider, _, model = (self._handle or "").partition("/")
        status = self._status(is_last=is_last)
        error = run.error if status == "failed" else None
        return Step(
            id=self.id,
            agent_id=run.agent_id,
            run_id=run_id(run.job.id, run.index),
            provider_name=provider or None,
            model=model or None,
            model_handle=self._handle,
            **(_tokens(self.of.usage) if len(steps) == 1 else {}),
            stop_reason=StopReason(run.stop_reason) if run.stop_reason and is_last else None,
            status=status,
            error_type=error["type"] if error else None,
            error_data=dict(error) if error else None,
            feedback=Feedback(said.feedback) if said is not None and said.feedback else None,
            tags=list(said.tags) if said is not None else [],
        )

    def _status(self, *, is_last: bool) -> Literal["pending", "success", "failed", "cancelled"]:
        run_status = _status(self.of.run)
        if is_last and run_status in _STEP_STATUS:
            return _STEP_STATUS[run_status]
        is_finished = not self.messages[-1].tool_calls or not is_last
        return "success" if is_finished else "pending"

    def metrics(self) -> StepMetrics:
        """Return its durations, which are known if it is the only step of its run."""
        run = self.of.run
        is_only = len(self.of.steps) == 1
        return StepMetrics(
            id=self.id,
            agent_id=run.agent_id,
            run_id=run_id(run.job.id, run.index),
            step_ns=run.duration_ns if is_only else None,
        )


def _by_message(parts: Iterable[LettaMessage]) -> list[MessageParts]:
    shown = cast(Iterable[LettaMessageBase], parts)  # the other types are those of streams
    return [list(several) for _, several in groupby(shown, key=lambda part: part.id)]


def _tokens(usage: Mapping[str, int]) -> dict[str, Any]:
    counted = Usage(**usage)
    if not counted.step_count:
        return {}
    return {
        "completion_tokens": counted.completion_tokens,
        "prompt_tokens": counted.prompt_tokens,
        "total_tokens": counted.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": counted.cached_input_tokens,
            "cache_creation_tokens": counted.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": counted.reasoning_tokens},
    }
