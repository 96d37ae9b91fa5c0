"""The records of agents, their memory and their conversations: plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from batchray.schema import message_id


class MemoryEdit(NamedTuple):
    """A memory block that a run has edited: the value that it found there, and the one that it left.

    `block_id` names a stored block; None is a block of the agent's settings, with the `limit` that they give it.
    """

    label: str
    base: str
    value: str
    limit: int
    block_id: str | None = None


@dataclass(frozen=True, slots=True)
class ConversationUpdate:
    """The effect of an outcome on later requests to its agent; ignored if the outcome did not succeed.

    `pending` are the ids of the tool calls that wait for the caller, and `memory` is what the request that answers them
    continues with: edited memory blocks, by label.  `edits` are those of this run.
    """

    agent_id: str
    is_stateful: bool = False
    pending: Sequence[str] = ()
    memory: Mapping[str, str] = field(default_factory=dict)
    edits: Sequence[MemoryEdit] = ()


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """An earlier item of a conversation."""

    job_id: str
    created_at: str
    index: int
    request: bytes
    messages: bytes


@dataclass(frozen=True, slots=True)
class HistoryPlace:
    """An earlier item of a conversation without its messages, of which it has `n_messages`, those of its input first.

    `key` is the primary key of its job.
    """

    key: int
    job_id: str
    index: int
    n_messages: int

    @property
    def message_ids(self) -> list[str]:
        """The ids of its messages."""
        return [message_id(self.job_id, self.index, ordinal) for ordinal in range(self.n_messages)]


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A memory block made over HTTP.  `spec` holds its other fields, as plain data in the format of the server."""

    id: str
    user_id: str
    created_at: str
    updated_at: str
    label: str
    value: str
    spec: dict[str, Any]

    @property
    def limit(self) -> int:
        """How many characters it may have."""
        return int(self.spec["limit"])

    @property
    def is_read_only(self) -> bool:
        """Whether no model may edit it."""
        return bool(self.spec.get("read_only"))


class NewBlock(NamedTuple):
    """A memory block as it is created; see `StoredBlock`."""

    label: str
    value: str
    spec: Mapping[str, Any]


class ConversationState(NamedTuple):
    """The state that an item continues from: its conversation, oldest item first, and memory by label.

    `blocks` are the stored ones among its agent's blocks, by id, without those that were deleted.
    """

    history: Sequence[HistoryItem]
    memory: Mapping[str, str]
    blocks: Mapping[str, StoredBlock] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class StoredAgent:
    """An agent made over HTTP.  `spec` is plain data, in the format of the server."""

    id: str
    user_id: str
    created_at: str
    updated_at: str
    spec: dict[str, Any]


class LastRun(NamedTuple):
    """The last run of an agent that has an outcome."""

    finished_at: str
    stop_reason: str
    duration_ns: int
