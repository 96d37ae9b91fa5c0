"""The seam between a request and whatever answers it, and the record of one run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from batchray.errors import RequestError
from batchray.schema import (
    AgentRequest,
    Message,
    MessageCreate,
    StopReason,
    TextContent,
    Usage,
    item_id,
    message_id,
    run_id,
)

Guard = Callable[[str, int], AbstractContextManager[None]]
"""Given a job id and an index, marks that the request runs code of its own (a tool, a callable) while it is entered."""


def unguarded(job_id: str, index: int) -> AbstractContextManager[None]:
    """Mark nothing."""
    return contextlib.nullcontext()


@dataclass
class Run:
    """One request being run: what came in, and what has become of it so far.

    What a run has gathered stays when it fails: its messages and usage are part of the outcome.  `deadline` is on
    `time.monotonic()`'s clock, in seconds; the `_ns` fields are on `time.monotonic_ns()`'s.
    """

    job_id: str
    index: int
    request: AgentRequest
    deadline: float = float("inf")
    guard: Guard = unguarded
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    started_ns: int = field(default_factory=time.monotonic_ns)
    first_token_ns: int | None = None
    usage: Usage = field(default_factory=Usage)
    messages: list[Message] = field(default_factory=list)

    @property
    def conversation(self) -> list[Message]:
        """The input and all that was said since."""
        return [*input_messages(self.job_id, self.index, self.request, self.now()), *self.messages]

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
    """Return a request's own messages as the conversation and the store's readers see them.

    Raises RequestError for an approval or a tool return: no run of an earlier request is kept that it could answer.
    """
    messages = []
    for ordinal, given in enumerate(request.input_messages):
        if not isinstance(given, MessageCreate):
            raise RequestError("no_pending_approval", f"messages[{ordinal}]: there is no tool call that waits for it")
        content = given.content
        messages.append(
            Message(
                id=message_id(job_id, index, ordinal),
                role=given.role,
                agent_id=request.agent_id,
                content=[TextContent(text=content)] if isinstance(content, str) else list(content),
                name=given.name,
                otid=given.otid,
                sender_id=given.sender_id,
                group_id=given.group_id,
                run_id=run_id(job_id, index),
                batch_item_id=item_id(job_id, index),
                created_at=created_at,
            )
        )
    return messages
