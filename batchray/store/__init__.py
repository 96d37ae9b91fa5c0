"""Durable state over SQLAlchemy Core: SQLite in the data directory, or PostgreSQL by URL.

`Store` is one `Database` with a repository for each kind of record: `store.jobs`, `store.items` (queries),
`store.outcomes` (writes about items), `store.leases`, `store.conversations`, `store.callbacks`, `store.agents`,
`store.blocks`, `store.files`, `store.runs`, `store.integrity`, `store.retention`.  `AsyncStore` is the same for async
code.

Invariants that this package alone holds:

- A job and its items appear together or not at all.
- An attempt has a row before it is spawned.  A first one may be counted ahead; it counts once it has begun.
- An outcome is recorded once, only from the item's current attempt and only by the holder of the job's lease; it never
  changes.
- A job's end and its callback row are one transaction.

Start reading in `store.py`, then `outcomes.py` (the group commit) and `leases.py` (fencing).
"""

from __future__ import annotations

from batchray.store.agent_records import (
    ConversationState,
    ConversationUpdate,
    HistoryItem,
    HistoryPlace,
    LastRun,
    MemoryEdit,
    NewBlock,
    StoredAgent,
    StoredBlock,
)
from batchray.store.async_store import AsyncStore, ThreadedStore
from batchray.store.callbacks import DueCallback
from batchray.store.database import Chunked, run_all
from batchray.store.directory import is_locked, lock, running_jobs
from batchray.store.disk_reserve import is_no_room
from batchray.store.figures import Figures, OutcomeFigures
from batchray.store.files import NewFile, StoredFile
from batchray.store.records import (
    DEFAULT_USER,
    AheadCounts,
    CarriedColumns,
    FailureKind,
    ItemPage,
    JobKind,
    JobRecord,
    LedJob,
    NewAttempt,
    NewItem,
    NewJob,
    NewOutcome,
    NewStep,
    PendingItem,
    RunFilter,
    RunPosition,
    SortOrder,
    StepFeedback,
    StoredItem,
    StoredResult,
    StoredRun,
    SucceededRequest,
    TakenOver,
    utc_now,
)
from batchray.store.retry import RetryingStore
from batchray.store.store import DATABASE, Store
from batchray.store.tallies import TALLY_EVERY, Tally

__all__ = [
    "DATABASE",
    "DEFAULT_USER",
    "TALLY_EVERY",
    "AheadCounts",
    "AsyncStore",
    "CarriedColumns",
    "Chunked",
    "ConversationState",
    "ConversationUpdate",
    "DueCallback",
    "FailureKind",
    "Figures",
    "HistoryItem",
    "HistoryPlace",
    "ItemPage",
    "JobKind",
    "JobRecord",
    "LastRun",
    "LedJob",
    "MemoryEdit",
    "NewAttempt",
    "NewBlock",
    "NewFile",
    "NewItem",
    "NewJob",
    "NewOutcome",
    "NewStep",
    "OutcomeFigures",
    "PendingItem",
    "RetryingStore",
    "RunFilter",
    "RunPosition",
    "SortOrder",
    "StepFeedback",
    "Store",
    "StoredAgent",
    "StoredBlock",
    "StoredFile",
    "StoredItem",
    "StoredResult",
    "StoredRun",
    "SucceededRequest",
    "TakenOver",
    "Tally",
    "ThreadedStore",
    "is_locked",
    "is_no_room",
    "lock",
    "run_all",
    "running_jobs",
    "utc_now",
]
