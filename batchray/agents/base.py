"""The interface of agents, and the state of one run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter

from batchray.agents.approvals import approvals_field, has_answers, model_view
from batchray.agents.checkpoints import Checkpoint, CheckpointSink, encode_checkpoint
from batchray.agents.failures import Masks
from batchray.agents.loop_watch import Owner, owned_by
from batchray.agents.memory import RunMemory
from batchray.config import MemoryBlock
from batchray.models import WrittenMessages
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
    step_id,
)
from batchray.support.captured_output import CapturedOutput
from batchray.support.timeouts import PausedTimeout

_MESSAGE = TypeAdapter(Message)

ExecutionMarker = Callable[[str, int], AbstractContextManager[None]]
"""Given a job id and an index: a context in which the request's own code (a tool, a callable) runs."""


def unmarked(job_id: str, index: int) -> AbstractContextManager[None]:
    """Return a context that records nothing."""
    return contextlib.nullcontext()


@dataclass
class Run:
    """The state of one request while it runs.

    The messages and usage gathered so far stay when the run fails: they are part of its outcome.
    """

    job_id: str
    index: int
    """The item's position in its job."""
    request: AgentRequest
    deadline: float = float("inf")
    """When the run has to end, in seconds of `time.monotonic()`; no model call continues after it."""
    mark_executing: ExecutionMarker = unmarked
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    """The clock of the messages' dates."""
    started_ns: int = field(default_factory=time.monotonic_ns)
    """When the run started, from `time.monotonic_ns()`."""
    first_token_ns: int | None = None
    """When the first token of the first model call arrived, on the same clock."""
    usage: Usage = field(default_factory=Usage)
    messages: list[Message] = field(default_factory=list)
    """The output so far, without the request's own messages."""
    history: list[Message] = field(default_factory=list)
    """The conversation that the run continues."""
    edited_memory: Mapping[str, str] = field(default_factory=dict)
    """The agent's memory as earlier runs edited it: values by label."""
    memory_bases: Mapping[str, str] = field(default_factory=dict)
    """The values that an earlier attempt of this run has edited, by label."""
    stored_blocks: Sequence[MemoryBlock] | None = None
    """The agent's blocks as the store has them now; None: as the agent's settings say."""
    memory: RunMemory = field(default_factory=RunMemory)
    """The memory of this run."""
    pending: tuple[str, ...] = ()
    """Ids of the tool calls that wait for the caller when the run ends."""
    returned: Mapping[str, MessageToolReturn] = field(default_factory=dict)
    """Returns of the unfinished step from an earlier attempt, by tool call id; their tools do not run again."""
    sink: CheckpointSink | None = None
    """Takes checkpoints after each step; None if steps are not saved."""
    limit: asyncio.Timeout | None = None
    """The timeout that ends the run at its deadline; paused while checkpoints are saved and while the run is held."""
    while_held: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    """Given by the process that runs this: a context that is entered while the run waits for its provider."""
    masks: Masks = field(default_factory=Masks)
    """Removes keys from what the request's own code says."""
    output: CapturedOutput = field(default_factory=CapturedOutput)
    """The output that the code of a function agent has written."""
    written: WrittenMessages = field(default_factory=WrittenMessages)
    """The messages as earlier model calls of the run have sent them."""
    _encoded: list[bytes] = field(default_factory=list)
    _n_saved: int = 0
    _n_pauses: int = 0
    _pause: PausedTimeout | None = None

    @property
    def has_answers(self) -> bool:
        """Whether the request answers tool calls instead of sending messages."""
        return has_answers(self.request)

    @property
    def repeat(self) -> object:
        """Which repeat of its request this is, as the request's metadata says; None if they do not."""
        return (self.request.metadata or {}).get("repeat")

    @property
    def conversation(self) -> list[Message]:
        """The history, the request's messages and the messages of this run, as models see them."""
        if not self.history:
            return [*self._inputs, *self.messages]
        return model_view([*self.history, *self._inputs, *self.messages])

    @functools.cached_property
    def _inputs(self) -> list[Message]:
        return input_messages(self.job_id, self.index, self.request, self.now())

    @property
    def encoded_messages(self) -> list[bytes]:
        """The output so far, each message as JSON, which is encoded once for its checkpoint and the report."""
        new = self.messages[len(self._encoded) :]
        self._encoded += [_MESSAGE.dump_json(message, exclude_none=True) for message in new]
        return self._encoded

    @property
    def ttft_ns(self) -> int | None:
        """The time from the run's start to the first token of its first model call."""
        return self.first_token_ns - self.started_ns if self.first_token_ns is not None else None

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Continue from the checkpoints of an earlier attempt."""
        returned: dict[str, MessageToolReturn] = {}
        for checkpoint in checkpoints:
            if checkpoint.messages:  # a new step, or the end of one
                returned = {}
            self.messages += checkpoint.messages
            returned.update((each.tool_call_id or "", each) for each in checkpoint.returns)
        self.returned, self._n_saved = returned, len(self.messages)
        if checkpoints:
            last = checkpoints[-1]
            self.usage = last.usage
            self.memory_bases = self._bases_of(last)
            self.edited_memory = {**self.edited_memory, **last.memory}
            if last.ttft_ns is not None:
                self.first_token_ns = self.started_ns + last.ttft_ns

    def _bases_of(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        if checkpoint.memory_bases is not None:
            return checkpoint.memory_bases
        before = self.edited_memory
        return {
            label: before.get(label, "") for label, value in checkpoint.memory.items() if value != before.get(label)
        }

    def save_checkpoint(self, *returns: MessageToolReturn) -> None:
        """Pass the messages since the last checkpoint, and returns of the unfinished step, to the sink."""
        if self.sink is None:
            return
        unsaved = self.encoded_messages[self._n_saved :]
        self._n_saved = len(self.messages)
        memory = self.memory
        self.sink.add(encode_checkpoint(unsaved, returns, self.usage, self.ttft_ns, memory.edited, memory.bases))

    async def flush(self) -> None:
        """Wait until the checkpoints so far are saved.  The run's deadline moves by the time waited."""
        if self.sink is None:
            return
        with self._paused():
            await self.sink.flush()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Enter while the run waits for its provider.  The run's deadline moves by that time."""
        with self.while_held(), self._paused():
            yield

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Pause the deadline; of blocks that overlap, from the start of the first to the end of the last."""
        if self._pause is None:
            self._pause = PausedTimeout(self.limit)
        self._n_pauses += 1
        try:
            yield
        finally:
            self._n_pauses -= 1
            if not self._n_pauses:
                self._pause.end()
                self.deadline += self._pause.paused_s
                self._pause = None

    def add_usage(self, usage: Usage) -> None:
        """Add the usage of a model call."""
        self.usage = usage + self.usage

    @property
    def _next_ordinal(self) -> int:
        return self.request.n_input_messages + len(self.messages)

    def next_step_id(self) -> str:
        """Return the id of a step that begins with the next message."""
        return step_id(self.job_id, self.index, self._next_ordinal)

    def append(self, **fields: Any) -> Message:
        """Add a message to the run, with its id, run, item and date filled in."""
        ordinal = self._next_ordinal
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

    def tool_return(
        self,
        status: Literal["success", "error"],
        text: str | None = None,
        call_id: str | None = None,
        output: CapturedOutput | None = None,
    ) -> MessageToolReturn:
        """Return what a call of the request's own code gave, and what it has written, without keys."""
        output = self.output if output is None else output
        return MessageToolReturn(
            tool_call_id=call_id,
            status=status,
            func_response=text,
            stdout=[self.masks.clean(output.stdout)] if output.stdout else [],
            stderr=[self.masks.clean(output.stderr)] if output.stderr else [],
        )

    @contextmanager
    def executing(self) -> Iterator[None]:
        """Enter while the request's own code runs in this process."""
        owner = Owner(self.job_id, self.index, self.request.agent_id)
        with owned_by(owner), self.mark_executing(self.job_id, self.index):
            yield


class AgentRunner(Protocol):
    """Runs requests of one agent, many at once."""

    async def run(self, run: Run) -> StopReason:
        """Answer `run.request`: add messages and usage to `run`, and return why it stopped.

        A RequestError becomes an outcome with its own stop reason; any other exception becomes one with `error`.
        """
        ...


def input_messages(job_id: str, index: int, request: AgentRequest, created_at: datetime) -> list[Message]:
    """Return a request's own messages in the form of stored messages."""
    return [
        Message(
            id=message_id(job_id, index, ordinal),
            agent_id=request.agent_id,
            otid=given.otid,
            group_id=given.group_id,
            run_id=run_id(job_id, index),
            batch_item_id=item_id(job_id, index),
            created_at=created_at,
            **(_user_fields(given) if isinstance(given, MessageCreate) else _apply_answer(given)),
        )
        for ordinal, given in enumerate(request.input_messages)
    ]


def _user_fields(given: MessageCreate) -> dict[str, Any]:
    content = given.content
    return {
        "role": given.role,
        "content": [TextContent(text=content)] if isinstance(content, str) else list(content),
        "name": given.name,
        "sender_id": given.sender_id,
    }


def _apply_answer(given: ApprovalCreate | ToolReturnCreate) -> dict[str, Any]:
    answers: dict[str, Any] = {"role": "approval", "content": [], "approvals": approvals_field(given)}
    if isinstance(given, ToolReturnCreate):
        return answers
    old_form = {"approve": given.approve, "approval_request_id": given.approval_request_id}
    return {**answers, **old_form, "denial_reason": given.reason}
