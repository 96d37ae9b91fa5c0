"""The records that go into the store and come out of it: plain frozen data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import orjson

from batchray.schema.outcomes import OutcomeData
from batchray.schema.progress import STATUSES, Progress
from batchray.store.agent_records import ConversationUpdate

DEFAULT_USER = "user-00000000-0000-4000-8000-000000000000"
"""The user of jobs created without an API key: Letta's default user."""

JobKind = Literal["batch", "run", "background"]
"""A batch, a single request whose client waits for it, or one for which no client waits."""

SortOrder = Literal["asc", "desc"]
"""Oldest first, or newest first."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is created.

    `snapshot` returns the settings of the agents that it is given the ids of.  `kind` is `batch`, or for one request to
    one agent, `agent_id`: `run` if a client waits for it, `background` if none does.  `idempotency_key` is unique for a
    user; `body_digest` is that of its body.
    `run_options` are what a resume of the job takes over, as JSON-able data.  `unused_fields` returns, once all items
    have been read, the names of fields in them that have no effect; `taken_over`, the outcomes that they have already,
    and `openai_batch`, what only OpenAI's API has of a batch.  One that `has_failed` ends without an item.
    """

    id: str
    snapshot: Callable[[Set[str]], Mapping[str, Any]]
    callback_url: str | None = None
    kind: JobKind = "batch"
    user_id: str = DEFAULT_USER
    agent_id: str | None = None
    idempotency_key: str | None = None
    body_digest: str | None = None
    run_options: Mapping[str, Any] | None = None
    unused_fields: Callable[[], Iterable[str]] = tuple
    taken_over: Callable[[], TakenOver | None] = lambda: None
    openai_batch: Callable[[], Mapping[str, Any] | None] = lambda: None
    has_failed: bool = False


class NewItem(NamedTuple):
    """An item as it is created; its index is its position."""

    agent_id: str
    custom_id: str | None
    request: bytes


class ItemPage(NamedTuple):
    """Items as they are created, column by column: several times cheaper for many."""

    agent_ids: Sequence[str]
    custom_ids: Sequence[str | None]
    requests: Sequence[bytes]


class CarriedColumns(NamedTuple):
    """Rows of the table that a job was made of: those of the items `first` to `first + n_rows - 1`.

    `data` is an Arrow IPC stream with one record batch.  All parts of a job have one schema.
    """

    first: int
    n_rows: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SucceededRequest:
    """A request whose item has succeeded."""

    index: int
    agent_id: str
    request: bytes


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Outcomes that a new job takes over from `source`: pairs of an index of the new job and one of `source`."""

    source: JobRecord
    pairs: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PendingItem:
    """An item without an outcome, with the counts of its earlier attempts."""

    index: int
    agent_id: str
    request: bytes
    attempt: int
    blamed_crashes: int
    collateral_crashes: int


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """An attempt as it begins; `attempt` counts all that were spawned.

    Of the attempts before it, `blamed_crashes` may have crashed their process, and `collateral_crashes` ended with one
    that another request caused.
    """

    index: int
    attempt: int
    blamed_crashes: int = 0
    collateral_crashes: int = 0


class AheadCounts(NamedTuple):
    """The indexes of items whose first attempt is counted before it is known when it begins.

    Those `counted` now, those of which it has `begun`, and those `uncounted` because it will not begin.
    """

    counted: Sequence[int]
    begun: Sequence[int]
    uncounted: Sequence[int]


@dataclass(frozen=True, slots=True)
class NewStep:
    """A checkpoint of an item's current attempt.  `seq` counts the item's checkpoints over all of its attempts."""

    index: int
    attempt: int
    seq: int
    checkpoint: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOutcome(OutcomeData):
    """The outcome of an item's current attempt, to be recorded.

    `agent_id` is the agent that ran, or None if this is not to be kept as its last run.
    `conversation_update` is None if no later request depends on it.  `has_steps`: its checkpoints may be stored.
    `shared_failure` is the `provider` and the `kind` of a failure that all requests of the provider meet.
    """

    index: int
    attempt: int
    queued_ns: int
    agent_id: str | None = None
    conversation_update: ConversationUpdate | None = None
    has_steps: bool = False
    shared_failure: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult(OutcomeData):
    """An item with its outcome, as it is read back.  `seq` counts outcomes in finish order, from 1."""

    seq: int
    index: int
    agent_id: str
    custom_id: str | None
    request: bytes
    attempts: int
    queued_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemState:
    """An item and how it ended.  `status` None: it has no outcome yet."""

    index: int
    agent_id: str
    custom_id: str | None
    attempts: int
    status: str | None
    stop_reason: str | None
    error: dict[str, str] | None
    usage: dict[str, int]
    ttft_ns: int | None
    duration_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem(ItemState):
    """An item with its outcome, without request and messages."""

    queued_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun(ItemState):
    """An item of any job as a run.  `messages` is empty unless it was read."""

    job: JobRecord
    request: bytes
    finished_at: str | None
    messages: bytes

    @property
    def position(self) -> RunPosition:
        """Its position among all runs of its user."""
        return RunPosition(self.job.key, self.index)


class RunPosition(NamedTuple):
    """The position of a run: the key of its job, and its index there."""

    job: int
    item: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs are wanted; None is all.

    `statuses` are those of outcomes, `created` for a run that has not begun, and `running`.  Times are ISO 8601 in UTC.
    """

    agent_ids: Collection[str] | None = None
    statuses: Collection[str] | None = None
    stop_reason: str | None = None
    kinds: Collection[JobKind] | None = None
    has_feedback: bool = False
    """Only those with feedback on one of their steps."""
    created_before: str | None = None
    ended_after: str | None = None
    """Those that had not ended at this time."""


class StepFeedback(NamedTuple):
    """The feedback of a person on a step."""

    feedback: str | None
    tags: Sequence[str]


class FailureKind(NamedTuple):
    """How many items failed in one way.  `example` is the error message of one of them."""

    stop_reason: str
    type: str
    n_items: int
    example: str


@dataclass(frozen=True)
class JobRecord:
    """A job as it was when it was read.  Times are ISO 8601 in UTC."""

    key: int
    id: str
    kind: str
    user_id: str
    agent_id: str | None
    status: str
    created_at: str
    updated_at: str
    started_at: str | None
    completed_at: str | None
    stop_reason: str | None
    callback_url: str | None
    callback_sent_at: str | None
    callback_status_code: int | None
    callback_error: str | None
    body_digest: str | None
    total: int
    counts: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    ttft_ns: int | None
    total_duration_ns: int | None
    progress: Progress | None
    paused_because: str | None
    """Why the job has paused itself; None if it has not."""
    unused_fields: str | None
    """The names of fields in its requests that have no effect, separated by commas."""

    @property
    def done(self) -> int:
        """Items that have an outcome."""
        return sum(self.counts.values())

    @property
    def is_single(self) -> bool:
        """Whether the job is one request to one agent, and no batch."""
        return self.kind != "batch"

    @property
    def outlives_client(self) -> bool:
        """Whether the job continues without a client: all except a single request without an idempotency key."""
        return self.kind != "run" or self.body_digest is not None

    @property
    def is_ended(self) -> bool:
        """Whether the job has ended, so that it does not change any more."""
        return self.completed_at is not None


@dataclass(frozen=True)
class LedJob(JobRecord):
    """A job whose lease this process has taken: the fencing token that every write about a running job needs.

    Only `Jobs.start` and `Jobs.take_over` make one.  `epoch` counts the job's leaders: a write with an old one is
    refused with LeaseLostError.
    """

    epoch: int

    @classmethod
    def of(cls, job: JobRecord, epoch: int) -> LedJob:
        """Return a job with the epoch of its lease."""
        return cls(**{each.name: getattr(job, each.name) for each in fields(job)}, epoch=epoch)


def job_record(row: Mapping[Any, Any]) -> JobRecord:
    """Return a job from its row, with or without the column `agents`."""
    progress = row["progress"]
    other = ("job", "agents", "progress", "last_seq", "idempotency_key", *STATUSES)
    return JobRecord(
        key=row["job"],
        counts={status: row[status] for status in STATUSES},
        progress=Progress.from_dict(orjson.loads(progress)) if progress else None,
        **{name: row[name] for name in row if name not in other},
    )


def utc_now() -> str:
    """Return the time as the store writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
