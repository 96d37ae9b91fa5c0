"""The seam between a request and whatever answers it, and the record of one run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from batchray.agents.approvals import answered_message, brings_answers, model_view
from batchray.agents.checkpoints import Checkpoint, CheckpointSink
from batchray.agents.memory import RunMemory
from batchray.schema import (
    AgentRequest,
    ApprovalCreate,
    Message,
    MessageCreate,
    MessageToolReturn,
    StopReason,
    TextContent,
    ToolReturnCreate,
    Usage,
    item_id,
    message_id,
    run_id,
)
from batchray.support.timeouts import paused

ExecutionMarker = Callable[[str, int], AbstractContextManager[None]]
"""Given a job id and an index, marks that the request runs code of its own (a tool, a callable) while it is entered."""


def unmarked(job_id: str, index: int) -> AbstractContextManager[None]:
    """Mark nothing."""
    return contextlib.nullcontext()


@dataclass
class Run:
    """One request being run: what came in, and what has become of it so far.

    What a run has gathered stays when it fails: its messages and usage are part of the outcome.  `deadline` is on
    `time.monotonic()`'s clock, in seconds; the `_ns` fields are on `time.monotonic_ns()`'s.  `history` is the
    conversation that it goes on with, and `edited_memory` what earlier runs made of the agent's memory; `pending` are
    the tool calls that wait when it ends.  `returned` is what tools of the step that is not finished gave back to an
    earlier attempt, by call; `sink` takes what is done, where that is to be kept step by step; `limit` ends it at its
    deadline.
    """

    job_id: str
    index: int
    request: AgentRequest
    deadline: float = float("inf")
    guard: ExecutionMarker = unmarked
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    started_ns: int = field(default_factory=time.monotonic_ns)
    first_token_ns: int | None = None
    usage: Usage = field(default_factory=Usage)
    messages: list[Message] = field(default_factory=list)
    history: list[Message] = field(default_factory=list)
    edited_memory: Mapping[str, str] = field(default_factory=dict)
    memory: RunMemory = field(default_factory=RunMemory)
    pending: tuple[str, ...] = ()
    returned: Mapping[str, MessageToolReturn] = field(default_factory=dict)
    sink: CheckpointSink | None = None
    limit: asyncio.Timeout | None = None
    _n_kept: int = 0

    @property
    def brings_answers(self) -> bool:
        """Whether the request answers tool calls instead of asking anew."""
        return brings_answers(self.request)

    @property
    def conversation(self) -> list[Message]:
        """What was said before, the input, and all that was said since, as models see it."""
        inputs = input_messages(self.job_id, self.index, self.request, self.now())
        if not self.history:
            return [*inputs, *self.messages]
        return model_view([*self.history, *inputs, *self.messages])

    @property
    def ttft_ns(self) -> int | None:
        """The time from the run's start to the first token of its first model call."""
        return self.first_token_ns - self.started_ns if self.first_token_ns is not None else None

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Go on from what an earlier attempt has done."""
        returned: dict[str, MessageToolReturn] = {}
        for checkpoint in checkpoints:
            if checkpoint.messages:  # a new step, or the end of one
                returned = {}
            self.messages += checkpoint.messages
            returned.update((given.tool_call_id or "", given) for given in checkpoint.returns)
        self.returned, self._n_kept = returned, len(self.messages)
        if checkpoints:
            last = checkpoints[-1]
            self.usage, self.edited_memory = last.usage, {**self.edited_memory, **last.memory}
            if last.ttft_ns is not None:
                self.first_token_ns = self.started_ns + last.ttft_ns

    def save_checkpoint(self, *returns: MessageToolReturn) -> None:
        """Hand out what was done since the last time, and what tools of the step gave back."""
        if self.sink is None:
            return
        done = Checkpoint(
            messages=self.messages[self._n_kept :],
            returns=returns,
            usage=self.usage,
            ttft_ns=self.ttft_ns,
            memory=self.memory.edited,
        )
        self._n_kept = len(self.messages)
        self.sink.add(done.model_dump_json(exclude_none=True).encode())

    async def flush(self) -> None:
        """Wait until all that was handed out is kept; its deadline moves by that time."""
        if self.sink is None:
            return
        with paused(self.limit) as pause:
            await self.sink.flush()
        self.deadline += pause.paused_s

    def add_usage(self, usage: Usage) -> None:
        """Count what a model call cost."""
        self.usage += usage

    def append(self, **fields: Any) -> Message:
        """Add a message to the run, with its id, run, item and date filled in."""
        ordinal = len(self.request.input_messages) + len(self.messages)
        message = Message(
            id=message_id(self.job_id, self.index, ordinal),
            agent_id=self.request.agent_id,
            run_id=run_id(self.job_id, self.index),
            batch_item_id=item_id(self.job_id, self.index),
            created_at=self.now(),
            **fields,
        )
        self.messages.append(message)
        return message

    def executing(self) -> AbstractContextManager[None]:
        """Enter while code of the request's own runs in this process."""
        return self.guard(self.job_id, self.index)


class AgentRunner(Protocol):
    """Answers requests of one agent; many at once."""

    async def run(self, run: Run) -> StopReason:
        """Answer `run.request`, adding messages and usage to `run`, and say why it stopped.

        A RequestError becomes the outcome with its own stop reason; any other exception becomes one with `error`.
        """
        ...


def input_messages(job_id: str, index: int, request: AgentRequest, created_at: datetime) -> list[Message]:
    """Return a request's own messages as the conversation and the store's readers see them."""
    return [
        Message(
            id=message_id(job_id, index, ordinal),
            agent_id=request.agent_id,
            otid=given.otid,
            group_id=given.group_id,
            run_id=run_id(job_id, index),
            batch_item_id=item_id(job_id, index),
            created_at=created_at,
            **(_said(given) if isinstance(given, MessageCreate) else _answered(given)),
        )
        for ordinal, given in enumerate(request.input_messages)
    ]


def _said(given: MessageCreate) -> dict[str, Any]:
    content = given.content
    return {
        "role": given.role,
        "content": [TextContent(text=content)] if isinstance(content, str) else list(content),
        "name": given.name,
        "sender_id": given.sender_id,
    }


def _answered(given: ApprovalCreate | ToolReturnCreate) -> dict[str, Any]:
    answers: dict[str, Any] = {"role": "approval", "content": [], "approvals": answered_message(given)}
    if isinstance(given, ToolReturnCreate):
        return answers
    old_form = {"approve": given.approve, "approval_request_id": given.approval_request_id}
    return {**answers, **old_form, "denial_reason": given.reason}
