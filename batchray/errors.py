"""Every exception that batchray raises.

    BatchrayError
    ├── UsageError                  the caller's input cannot be used; nothing was run (exit status 2)
    │   ├── BatchFormatError        the batch cannot be read: line or index, and the reason
    │   │   ├── EmptyBatchError     the batch has no requests
    │   │   └── UnknownAgentError   a request names an agent that does not exist
    │   ├── RefusedLinesError       the file of an OpenAI batch cannot be run
    │   ├── ConfigError             settings, agents or providers cannot be used: file, place, reason
    │   ├── UnknownJobError         no job with that id in this data directory
    │   ├── UnknownBlockError       no memory block with that id
    │   ├── BlockConflictError      an agent cannot have that memory block as well
    │   ├── AmbiguousJobError       several jobs have ids with that beginning
    │   ├── UnknownItemError        the job has no such item, or no outcome of it yet
    │   ├── JobEndedError           a job that has ended cannot be started or steered
    │   ├── JobNotEndedError        a job that has not ended cannot be retried
    │   ├── StoreLockedError        another process writes to this data directory
    │   └── KeyInUseError           another batch came with the same idempotency key
    ├── StoreError                  the store cannot be read or written
    │   ├── StoreCorruptError       the database is damaged: what to do
    │   └── StoreUnavailableError   the store cannot be used now; waiting helps
    │       └── StoreFullError      its disk is full
    ├── ClusterError                Ray cannot be started, reached or used any more
    ├── WorkerDiedError             the process that ran an attempt ended without an answer
    ├── JobInterruptedError         a wait for a job ended before the job did
    │   ├── JobPausedError          the job has paused itself: the reason
    │   └── LeaseLostError          another server leads the job now
    └── RequestError                one request failed; becomes its outcome, never ends a job
        ├── ModelAPIError           the provider refused, failed or did not answer in time
        ├── InvalidResponseError    the provider's answer is truncated, malformed or empty
        ├── InvalidToolCallError    a scripted model fails with an unusable tool call
        ├── NoToolCallError         the model ended its turn without the tool call that its agent requires
        ├── ApprovalError           the approval fits no tool call that waits for one
        ├── LimitReachedError       the agent's limit of tokens or cost per request is reached
        └── DeadlineExceededError   the request's deadline has passed

All of them survive pickling: each passes every argument to `Exception` positionally.
"""

from __future__ import annotations

from typing import Any, Self


class BatchrayError(Exception):
    """The root of the tree: every error that batchray raises on purpose."""


class UsageError(BatchrayError):
    """The caller's input cannot be used; nothing was run."""


class BatchFormatError(UsageError):
    """The input cannot be read as a batch.

    `line` counts from 1 in a file of lines, `index` from 0 in a body or an iterable, `row` from 0 in a table; all three
    are None if the error concerns the whole input.  `path` leads to the place in the request, such as
    `messages[0].content`, or names a column.  `file` is the file or address, empty if there is none.
    """

    def __init__(
        self,
        reason: str,
        line: int | None = None,
        index: int | None = None,
        path: str = "",
        row: int | None = None,
        file: str = "",
    ) -> None:
        super().__init__(reason, line, index, path, row, file)
        self.reason, self.line, self.index, self.path, self.row, self.file = reason, line, index, path, row, file

    def __str__(self) -> str:
        if self.index is not None:
            dot = "." if self.path and not self.path.startswith("[") else ""
            where = f"requests[{self.index}]{dot}{self.path}"
            return ", ".join(filter(None, (self.file, where))) + f": {self.reason}"
        line = "" if self.line is None else f"line {self.line}"
        row = "" if self.row is None else f"row {self.row}"
        place = ", ".join(filter(None, (self.file, line, row)))
        return ": ".join(filter(None, (place, self.path, self.reason)))

    def at(
        self, *, line: int | None = None, index: int | None = None, row: int | None = None, file: str | None = None
    ) -> Self:
        """Return the error with the place of the request; what is not given stays as it is."""
        known = (self.line, self.index, self.row)
        line, index, row = (old if new is None else new for old, new in zip(known, (line, index, row), strict=True))
        return type(self)(self.reason, line, index, self.path, row, self.file if file is None else file)


class EmptyBatchError(BatchFormatError):
    """The batch has no requests."""


class UnknownAgentError(BatchFormatError):
    """A request names an agent that does not exist."""


class RefusedLinesError(UsageError):
    """The file of an OpenAI batch cannot be run.

    `problems`, at least one, have a `code`, a `message`, the `line`, which counts from 1 and is None for the whole
    file, and a `param`.
    """

    def __init__(self, problems: tuple[dict[str, Any], ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        first = self.problems[0]
        return str(first["message"] if first["line"] is None else f"line {first['line']}: {first['message']}")


class UnknownBlockError(UsageError):
    """No memory block with that id."""

    def __init__(self, block_id: str) -> None:
        super().__init__(block_id)
        self.block_id = block_id

    def __str__(self) -> str:
        return f"Block with id {self.block_id} not found"


class BlockConflictError(UsageError):
    """An agent cannot have a memory block as well as those that it has."""


class ConfigError(UsageError):
    """Settings, agents or providers cannot be used.  `location` names the file, and the line or path in it."""

    def __init__(self, reason: str, location: str = "") -> None:
        super().__init__(reason, location)
        self.reason, self.location = reason, location

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}" if self.location else self.reason


class UnknownJobError(UsageError):
    """The data directory has no job with this id."""

    def __init__(self, job_id: str, data_dir: str = "") -> None:
        super().__init__(job_id, data_dir)
        self.job_id, self.data_dir = job_id, data_dir

    def __str__(self) -> str:
        where = f" in {self.data_dir}" if self.data_dir else ""
        return f"no job {self.job_id!r}{where}; `batchray status` lists the jobs of a data directory"


class UnknownItemError(UsageError):
    """The job has no such item, or no outcome of it yet."""

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(job_id, reason)
        self.job_id, self.reason = job_id, reason

    def __str__(self) -> str:
        return f"job {self.job_id}: {self.reason}"


class AmbiguousJobError(UsageError):
    """Several jobs have ids with this beginning.  `candidates` are their ids, separated by commas."""

    def __init__(self, beginning: str, candidates: str) -> None:
        super().__init__(beginning, candidates)
        self.beginning, self.candidates = beginning, candidates

    def __str__(self) -> str:
        return f"{self.beginning!r} is the beginning of several jobs' ids: {self.candidates}; type more of the id"


class JobEndedError(UsageError):
    """A job that has ended cannot be started, paused, resized or canceled."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"job {self.job_id} has already ended; `batchray retry {self.job_id}` runs its failed items again"


class JobNotEndedError(UsageError):
    """A job cannot be retried: it has not ended, or another process has just started to retry it."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"job {self.job_id} has not ended yet"


class StoreLockedError(UsageError):
    """Another process has the data directory open for writing."""

    def __init__(self, data_dir: str, holder: str = "") -> None:
        super().__init__(data_dir, holder)
        self.data_dir, self.holder = data_dir, holder

    @property
    def reason(self) -> str:
        """Who has the directory, without the advice."""
        return f"{f'process {self.holder}' if self.holder else 'another process'} is writing to {self.data_dir}"

    def __str__(self) -> str:
        return f"{self.reason}; wait until it ends, or use another --data-dir"


class KeyInUseError(UsageError):
    """Another batch of this user came with the same idempotency key."""


class StoreError(BatchrayError):
    """The store cannot be read or written."""


class StoreCorruptError(StoreError):
    """The database is damaged."""

    def __init__(self, where: str, reason: str = "") -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return (
            f"{self.where} is damaged ({self.reason}); `batchray db check` lists the damage, `batchray db export "
            "--output FILE` saves what is readable; then continue with another --data-dir"
        )


class StoreUnavailableError(StoreError):
    """The store cannot be used now: another program locks it, or its server restarts.  Waiting helps."""


class StoreFullError(StoreUnavailableError):
    """The store's disk is full.  Running jobs wait, and new batches are refused."""


class ClusterError(BatchrayError):
    """Ray cannot be started, reached, or used any more."""


class WorkerDiedError(BatchrayError):
    """The process that ran an attempt ended without an answer.

    `is_suspect`: this request was running its own code in that process, so it may have caused the crash; a request that
    only waited for its model is no suspect.  `ran_s` is how long the attempt had run, in seconds; it counts towards the
    request's deadline.
    """

    def __init__(self, reason: str, is_suspect: bool = True, ran_s: float = 0.0) -> None:
        super().__init__(reason, is_suspect, ran_s)
        self.reason, self.is_suspect, self.ran_s = reason, is_suspect, ran_s

    def __str__(self) -> str:
        return self.reason


class JobInterruptedError(BatchrayError):
    """A wait for a job ended before the job did.  Finished items are kept, and `batchray.resume` continues the job."""

    def __init__(self, job_id: str, reason: str = "interrupted") -> None:
        super().__init__(job_id, reason)
        self.job_id, self.reason = job_id, reason

    def __str__(self) -> str:
        return f"job {self.job_id}: {self.reason}"


class JobPausedError(JobInterruptedError):
    """The job has paused itself, because more of its requests would fail.  Nothing of it runs in this process now.

    `reason` is a sentence for people: what failed, and of which provider.
    """

    def __str__(self) -> str:
        return f"job {self.job_id} is paused: {self.reason}; `batchray resume {self.job_id}` continues it"


class LeaseLostError(JobInterruptedError):
    """Another server leads the job now and continues it."""

    def __init__(self, job_id: str, reason: str = "another server leads it") -> None:
        super().__init__(job_id, reason)


class RequestError(BatchrayError):
    """One request failed.  The error becomes that request's outcome and never ends a job.

    `type` is a short stable word for programs (`rate_limited`, `stream_truncated`, ...), `message` one sentence for
    people.  `stop_reason` is Letta's word for the class of failure.  `shared_by` is the provider whose requests all
    fail like this (a wrong key, an unknown model, an empty account); empty if the request itself may be the cause.
    """

    stop_reason = "error"

    def __init__(self, type: str, message: str, shared_by: str = "") -> None:
        super().__init__(type, message, shared_by)
        self.type, self.message, self.shared_by = type, message, shared_by

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class ModelAPIError(RequestError):
    """The provider refused, failed, or did not answer in time, and no retry is left."""

    stop_reason = "llm_api_error"


class InvalidResponseError(RequestError):
    """The provider's answer is truncated, malformed or empty."""

    stop_reason = "invalid_llm_response"


class InvalidToolCallError(RequestError):
    """A tool call cannot be used.  Only scripted models fail like this: real ones are told and may correct the call."""

    stop_reason = "invalid_tool_call"


class NoToolCallError(RequestError):
    """The model ended its turn without the tool call that its agent requires."""

    stop_reason = "no_tool_call"


class ApprovalError(RequestError):
    """The caller's approvals or tool returns fit no tool calls that wait for them.

    `type` is `no_pending_approval`, `already_answered`, `incomplete_approval`, `ambiguous_approval`, `mixed_messages`,
    `tool_return_needed` or `unsupported_content`; or `pending_approval` for a request to an agent that waits for an
    approval first.
    """

    stop_reason = "invalid_tool_call"  # Letta's word for a malformed approval


class LimitReachedError(RequestError):
    """The request has reached its agent's limit of tokens or cost."""


class DeadlineExceededError(RequestError):
    """The request's deadline has passed."""
