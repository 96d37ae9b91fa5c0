"""Jobs, items, attempts and outcomes over SQLAlchemy Core: SQLite in the data directory.

What holds here, and nowhere else: a job and its items appear together or not at all; an attempt is counted before it
is spawned; an outcome is taken once, and only from the item's current attempt; a taken outcome never changes.

One connection writes, on one thread, and it alone makes checkpoints: SQLite before 3.51.3 can lose a WAL reset when two
connections do (sqlite.org/wal.html, "the WAL-reset bug").  Readers open the file read-only, in this process or others.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar
from urllib.parse import quote

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from batchray.errors import StoreError, StoreLockedError, UnknownJobError
from batchray.progress import STATUSES, Progress
from batchray.threads import DaemonThread

P = ParamSpec("P")
T = TypeVar("T")

_SCHEMA_VERSION = 1
_CHUNK = 500
_PAGE_BYTES = 8 * 1024 * 1024
_LOCK_TRIES, _LOCK_PAUSE_S = 5, 0.05

_OUTCOME_COLUMNS = ("attempt", "status", "stop_reason", "queued_ns", "ttft_ns", "duration_ns", "messages")
_RESULT_COLUMNS = ("status", "stop_reason", "error", "usage", "queued_ns", "ttft_ns", "duration_ns", "messages")

_metadata = sa.MetaData()

_jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("updated_at", sa.String, nullable=False),
    sa.Column("started_at", sa.String),
    sa.Column("completed_at", sa.String),
    sa.Column("stop_reason", sa.String),
    sa.Column("callback_url", sa.String),
    sa.Column("agents", sa.LargeBinary, nullable=False),
    sa.Column("total", sa.Integer, nullable=False, server_default="0"),
    *(sa.Column(status, sa.Integer, nullable=False, server_default="0") for status in STATUSES),
    sa.Column("prompt_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("completion_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("last_seq", sa.Integer, nullable=False, server_default="0"),
    sa.Column("ttft_ns", sa.Integer),
    sa.Column("total_duration_ns", sa.Integer),
    sa.Column("progress", sa.LargeBinary),
)

_items = sa.Table(
    "items",
    _metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("idx", sa.Integer, primary_key=True),
    sa.Column("agent_id", sa.String, nullable=False),
    sa.Column("custom_id", sa.String),
    sa.Column("request", sa.LargeBinary, nullable=False),
)

# Apart from items, and narrow: counting an attempt then touches one dense page, not the page of a request's body.
_attempts = sa.Table(
    "attempts",
    _metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("idx", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("deaths", sa.Integer, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

_outcomes = sa.Table(
    "outcomes",
    _metadata,
    sa.Column("job", sa.Integer, primary_key=True),
    sa.Column("idx", sa.Integer, primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("stop_reason", sa.String, nullable=False),
    sa.Column("error", sa.LargeBinary),
    sa.Column("usage", sa.LargeBinary, nullable=False),
    sa.Column("queued_ns", sa.Integer, nullable=False),
    sa.Column("ttft_ns", sa.Integer),
    sa.Column("duration_ns", sa.Integer, nullable=False),
    sa.Column("messages", sa.LargeBinary, nullable=False),
    sa.Column("finished_at", sa.String, nullable=False),
    sa.Index("outcomes_in_finish_order", "job", "seq", unique=True),
)


class NewItem(NamedTuple):
    """An item as it is created; its index is its position."""

    agent_id: str
    custom_id: str | None
    request: bytes


@dataclass(frozen=True, slots=True)
class PendingItem:
    """An item that has no outcome yet, with what its earlier attempts came to."""

    index: int
    agent_id: str
    request: bytes
    attempt: int
    deaths: int


@dataclass(frozen=True, slots=True)
class NewOutcome:
    """What became of an item's current attempt.  `error`, `usage`: plain data; `messages`: a JSON array."""

    index: int
    attempt: int
    status: str
    stop_reason: str
    error: Mapping[str, str] | None
    usage: Mapping[str, int]
    queued_ns: int
    ttft_ns: int | None
    duration_ns: int
    messages: bytes


@dataclass(frozen=True, slots=True)
class StoredResult:
    """An item with its outcome, as it is read back.  `seq` counts outcomes in finish order, from 1."""

    seq: int
    index: int
    agent_id: str
    custom_id: str | None
    request: bytes
    attempts: int
    status: str
    stop_reason: str
    error: dict[str, str] | None
    usage: dict[str, int]
    queued_ns: int
    ttft_ns: int | None
    duration_ns: int
    messages: bytes


class FailureKind(NamedTuple):
    """How many items failed in one way.  `example` is the error's message of one of them."""

    stop_reason: str
    type: str
    n_items: int
    example: str


@dataclass(frozen=True)
class JobRecord:
    """A job as the store holds it.  Times are ISO 8601 in UTC; counts are of the moment of reading."""

    key: int
    id: str
    status: str
    created_at: str
    updated_at: str
    started_at: str | None
    completed_at: str | None
    stop_reason: str | None
    callback_url: str | None
    agents: dict[str, Any]
    total: int
    counts: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    ttft_ns: int | None
    total_duration_ns: int | None
    progress: Progress | None

    @property
    def done(self) -> int:
        """Items that have an outcome."""
        return sum(self.counts.values())

    @property
    def is_ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.completed_at is not None


def utc_now() -> str:
    """Return the time as the store writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Store:
    """One data directory.  Blocking and plain; `call` runs a method on the writer's thread for async code."""

    def __init__(self, engine: sa.Engine, data_dir: Path, lock: int | None) -> None:
        self._engine, self.data_dir, self._lock = engine, data_dir, lock
        self._writer = DaemonThread("batchray-store")
        self._running_jobs: list[str] = []

    @classmethod
    def open(cls, data_dir: Path) -> Self:
        """Open a data directory for reading and writing; it is made where it does not exist.

        Raises StoreLockedError while another process, or another store of this one, writes to it, and StoreError
        where it cannot be written or was made by a newer version.
        """
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            lock = _lock(data_dir)
        except OSError as error:
            raise StoreError(f"cannot write to {data_dir}: {error.strerror}") from None
        engine = _engine(f"file:{_quoted(data_dir / 'batchray.db')}?mode=rwc", is_writer=True)
        store = cls(engine, data_dir, lock)
        try:
            store._create_schema()
        except sa.exc.DatabaseError as error:
            store.close()
            raise StoreError(f"cannot use {data_dir / 'batchray.db'}: {error.orig}") from None
        except StoreError:
            store.close()
            raise
        return store

    @classmethod
    def open_for_reading(cls, data_dir: Path) -> Self:
        """Open a data directory for reading, also while another process writes to it.

        Raises StoreError where there is none, or one that was made by a newer version.
        """
        file = data_dir / "batchray.db"
        if not file.exists():
            raise StoreError(f"no batchray data in {data_dir}; give the --data-dir that the job was run with")
        store = cls(_engine(f"file:{_quoted(file)}?mode=ro", is_writer=False), data_dir, None)
        try:
            with store._reading() as connection:
                store._check_version(connection)
        except StoreError:
            store.close()
            raise
        return store

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking method on the writer's thread.  A cancelled wait lets it finish."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, lambda: method(*args, **keywords))

    def close(self) -> None:
        """Finish what is being written, then close."""
        self._writer.shutdown()
        self._engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def announce(self, job_id: str) -> None:
        """Let other processes know that this one runs a job."""
        self._running_jobs.append(job_id)
        self._write_lock()

    def withdraw(self, job_id: str) -> None:
        """Let other processes know that this one does not run a job any more."""
        self._running_jobs.remove(job_id)
        self._write_lock()

    def _write_lock(self) -> None:
        if self._lock is not None:
            _write_holder(self._lock, self._running_jobs)

    # -- jobs

    def create_job(
        self, job_id: str, agents: Mapping[str, Any], items: Iterable[NewItem], callback_url: str | None = None
    ) -> int:
        """Create a job with its items in one transaction and return how many; on disk when this returns.

        What `items` raises undoes it all.
        """
        now, total = utc_now(), 0
        with self._transaction() as connection:
            job = connection.execute(
                sa.insert(_jobs).values(
                    id=job_id,
                    status="created",
                    created_at=now,
                    updated_at=now,
                    callback_url=callback_url,
                    agents=orjson.dumps(agents),
                )
            ).inserted_primary_key[0]  # type: ignore[index]
            for chunk in _chunks(items, lambda item: len(item.request)):
                rows = [{"job": job, "idx": total + n, **item._asdict()} for n, item in enumerate(chunk)]
                connection.execute(sa.insert(_items), rows)
                total += len(rows)
            connection.execute(sa.update(_jobs).where(_jobs.c.job == job).values(total=total))
        return total

    def start_job(self, job_id: str) -> JobRecord:
        """Mark a job as running and return it."""
        with self._transaction() as connection:
            now = utc_now()
            connection.execute(
                sa.update(_jobs)
                .where(_jobs.c.id == job_id, _jobs.c.completed_at.is_(None))
                .values(status="running", updated_at=now, started_at=sa.func.coalesce(_jobs.c.started_at, now))
            )
        return self.job(job_id)

    def end_job(
        self, job_id: str, status: str, stop_reason: str, progress: Progress, ttft_ns: int | None, duration_ns: int
    ) -> JobRecord:
        """Write a job's end, once; a second end changes nothing.  Returns the job as it then is."""
        now = utc_now()
        with self._transaction() as connection:
            connection.execute(
                sa.update(_jobs)
                .where(_jobs.c.id == job_id, _jobs.c.completed_at.is_(None))
                .values(
                    status=status,
                    stop_reason=stop_reason,
                    completed_at=now,
                    updated_at=now,
                    ttft_ns=ttft_ns,
                    total_duration_ns=duration_ns,
                    progress=orjson.dumps(progress.to_dict()),
                )
            )
        return self.job(job_id)

    def reopen(self, job_id: str) -> int:
        """Forget the outcomes of an ended job that did not succeed, so that it can go on; returns how many.

        The one way in which an outcome goes, and only when the caller asks for it.
        """
        job = self.job(job_id)
        with self._transaction() as connection:
            failed = sa.and_(_outcomes.c.job == job.key, _outcomes.c.status != "succeeded")
            again = sa.select(_outcomes.c.idx).where(failed)
            connection.execute(
                sa.update(_attempts).where(_attempts.c.job == job.key, _attempts.c.idx.in_(again)).values(deaths=0)
            )
            n_forgotten = connection.execute(sa.delete(_outcomes).where(failed)).rowcount
            tokens = self._sum_tokens(connection, job)
            connection.execute(
                sa.update(_jobs)
                .where(_jobs.c.job == job.key)
                .values(
                    status="created",
                    stop_reason=None,
                    completed_at=None,
                    progress=None,
                    **{status: 0 for status in STATUSES if status != "succeeded"},
                    **tokens,
                )
            )
        return n_forgotten

    def job(self, job_id: str) -> JobRecord:
        """Return a job.  Raises UnknownJobError."""
        with self._reading() as connection:
            row = connection.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).mappings().first()
        if row is None:
            raise UnknownJobError(job_id, str(self.data_dir))
        return _job_record(row)

    def jobs(self) -> list[JobRecord]:
        """Return all jobs, oldest first."""
        with self._reading() as connection:
            return [_job_record(row) for row in connection.execute(sa.select(_jobs).order_by(_jobs.c.job)).mappings()]

    # -- items

    def unfinished(self, job: JobRecord, after: int, limit: int = _CHUNK) -> list[PendingItem]:
        """Return the next items without an outcome, in index order: at most `limit`, and about 8 MiB of requests."""
        query = (
            sa.select(
                _items.c.idx,
                _items.c.agent_id,
                _items.c.request,
                sa.func.coalesce(_attempts.c.attempt, 0),
                sa.func.coalesce(_attempts.c.deaths, 0),
            )
            .outerjoin(_outcomes, _same_item(_items, _outcomes))
            .outerjoin(_attempts, _same_item(_items, _attempts))
            .where(_items.c.job == job.key, _items.c.idx > after, _outcomes.c.idx.is_(None))
            .order_by(_items.c.idx)
            .limit(limit)
        )
        return list(self._page(query, PendingItem, lambda item: len(item.request)))

    def begin_attempts(self, job: JobRecord, attempts: Sequence[tuple[int, int, int]]) -> None:
        """Count attempts before they are spawned: (index, attempt, deaths so far) each."""
        with self._transaction() as connection:
            self._write_attempts(connection, job, attempts)

    def record(self, job: JobRecord, outcomes: Sequence[NewOutcome]) -> list[NewOutcome]:
        """Take outcomes in one transaction and return those that were taken.

        Not taken: a second outcome of an item, and one from an attempt that is not the item's current one.
        """
        return self.write(job, [], outcomes)

    def write(
        self, job: JobRecord, attempts: Sequence[tuple[int, int, int]], outcomes: Sequence[NewOutcome]
    ) -> list[NewOutcome]:
        """Count attempts and take outcomes, all in one transaction; returns the outcomes that were taken."""
        with self._transaction() as connection:
            self._write_attempts(connection, job, attempts)
            taken = self._current(connection, job, outcomes)
            if taken:
                self._insert_outcomes(connection, job, taken)
        return taken

    def failure_kinds(self, job: JobRecord) -> list[FailureKind]:
        """Return the kinds of failures, the most frequent first, with the message of one of each."""
        kinds: dict[tuple[str, str], FailureKind] = {}
        query = sa.select(_outcomes.c.stop_reason, _outcomes.c.error).where(
            _outcomes.c.job == job.key, _outcomes.c.error.is_not(None)
        )
        with self._reading() as connection:
            for stop_reason, described in connection.execution_options(yield_per=_CHUNK).execute(query):
                error = orjson.loads(described)
                key = (stop_reason, error["type"])
                count = kinds[key].n_items if key in kinds else 0
                kinds[key] = FailureKind(*key, count + 1, error["message"])
        return sorted(kinds.values(), key=lambda kind: -kind.n_items)

    def end_unfinished(self, job: JobRecord, status: str, stop_reason: str, error: Mapping[str, str] | None) -> int:
        """Give every item without an outcome this one; returns how many.  In short transactions."""
        total, last = 0, -1
        while pending := self.unfinished(job, after=last):
            last = pending[-1].index
            attempts = [(item.index, max(item.attempt, 1), item.deaths) for item in pending if item.attempt == 0]
            outcomes = [
                NewOutcome(item.index, max(item.attempt, 1), status, stop_reason, error, {}, 0, None, 0, b"[]")
                for item in pending
            ]
            total += len(self.write(job, attempts, outcomes))
        return total

    def results(
        self,
        job: JobRecord,
        *,
        after_index: int = -1,
        after_seq: int | None = None,
        is_failed: bool = False,
        limit: int = _CHUNK,
    ) -> list[StoredResult]:
        """Return a page of results: in index order, or, with `after_seq`, in finish order."""
        query = (
            sa.select(
                _outcomes.c.seq,
                _items.c.idx,
                _items.c.agent_id,
                _items.c.custom_id,
                _items.c.request,
                _outcomes.c.attempt,
                *(_outcomes.c[name] for name in _RESULT_COLUMNS),
            )
            .join(_items, _same_item(_items, _outcomes))
            .where(_outcomes.c.job == job.key)
            .limit(limit)
        )
        if after_seq is None:
            query = query.where(_outcomes.c.idx > after_index).order_by(_outcomes.c.idx)
        else:
            query = query.where(_outcomes.c.seq > after_seq).order_by(_outcomes.c.seq)
        if is_failed:
            query = query.where(_outcomes.c.status != "succeeded")
        rows = self._page(query, _stored_result, lambda row: len(row.request) + len(row.messages))
        return list(rows)

    def timings(self, job: JobRecord) -> Iterator[tuple[str, dict[str, int | None], dict[str, int]]]:
        """Yield status, timing and usage of every outcome: what a `Progress` is rebuilt from."""
        names = ("queued_ns", "ttft_ns", "duration_ns")
        columns = (_outcomes.c.idx, _outcomes.c.status, _outcomes.c.usage, *(_outcomes.c[name] for name in names))
        after = -1
        while True:
            query = sa.select(*columns).where(_outcomes.c.job == job.key, _outcomes.c.idx > after)
            with self._reading() as connection:
                rows = connection.execute(query.order_by(_outcomes.c.idx).limit(_CHUNK)).all()
            if not rows:
                return
            for after, status, usage, *durations in rows:  # noqa: B007
                yield status, dict(zip(names, durations, strict=True)), orjson.loads(usage)

    # -- inside

    def _write_attempts(
        self, connection: sa.Connection, job: JobRecord, attempts: Sequence[tuple[int, int, int]]
    ) -> None:
        if not attempts:
            return
        statement = insert(_attempts)
        statement = statement.on_conflict_do_update(
            index_elements=["job", "idx"],
            set_={"attempt": statement.excluded.attempt, "deaths": statement.excluded.deaths},
        )
        rows = [{"job": job.key, "idx": i, "attempt": attempt, "deaths": deaths} for i, attempt, deaths in attempts]
        connection.execute(statement, rows)

    def _current(self, connection: sa.Connection, job: JobRecord, outcomes: Sequence[NewOutcome]) -> list[NewOutcome]:
        """Keep the outcomes that may be taken: of the current attempt, the first of its item."""
        current: dict[int, int] = {}
        for chunk in _chunks(outcome.index for outcome in outcomes):
            query = (
                sa.select(_attempts.c.idx, _attempts.c.attempt)
                .outerjoin(_outcomes, _same_item(_attempts, _outcomes))
                .where(_attempts.c.job == job.key, _attempts.c.idx.in_(chunk), _outcomes.c.idx.is_(None))
            )
            current.update((row.idx, row.attempt) for row in connection.execute(query))
        taken = []
        for outcome in outcomes:
            if current.get(outcome.index) == outcome.attempt:
                del current[outcome.index]
                taken.append(outcome)
        return taken

    def _insert_outcomes(self, connection: sa.Connection, job: JobRecord, taken: Sequence[NewOutcome]) -> None:
        seq = connection.execute(sa.select(_jobs.c.last_seq).where(_jobs.c.job == job.key)).scalar_one()
        now = utc_now()
        rows = [
            {
                "job": job.key,
                "seq": seq + n,
                "finished_at": now,
                "idx": outcome.index,
                **{name: getattr(outcome, name) for name in _OUTCOME_COLUMNS},
                "error": orjson.dumps(outcome.error) if outcome.error else None,
                "usage": orjson.dumps(outcome.usage),
            }
            for n, outcome in enumerate(taken, start=1)
        ]
        connection.execute(sa.insert(_outcomes), rows)
        added = {status: sum(outcome.status == status for outcome in taken) for status in STATUSES}
        for name in ("prompt_tokens", "completion_tokens"):
            added[name] = sum(outcome.usage.get(name, 0) for outcome in taken)
        values: dict[str, Any] = {name: _jobs.c[name] + n for name, n in added.items() if n}
        values["last_seq"] = seq + len(taken)
        connection.execute(sa.update(_jobs).where(_jobs.c.job == job.key).values(updated_at=now, **values))

    def _sum_tokens(self, connection: sa.Connection, job: JobRecord) -> dict[str, int]:
        sums = {"prompt_tokens": 0, "completion_tokens": 0}
        for (usage,) in connection.execute(sa.select(_outcomes.c.usage).where(_outcomes.c.job == job.key)):
            for name in sums:
                sums[name] += orjson.loads(usage).get(name, 0)
        return sums

    def _page(self, query: sa.Select[Any], build: Callable[..., T], size: Callable[[T], int]) -> Iterator[T]:
        """Yield rows until about `_PAGE_BYTES` of them, so that large requests make short pages."""
        budget = _PAGE_BYTES
        with self._reading() as connection:
            for row in connection.execution_options(yield_per=50).execute(query):
                built = build(*row)
                yield built
                budget -= size(built)
                if budget <= 0:
                    return

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DatabaseError as error:
            raise StoreError(f"the store in {self.data_dir} failed: {error.orig}") from error

    def _create_schema(self) -> None:
        with self._engine.begin() as connection:
            self._check_version(connection)
            _metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _check_version(self, connection: sa.Connection) -> None:
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if version > _SCHEMA_VERSION:
            raise StoreError(f"{self.data_dir} was written by a newer version of batchray; upgrade to read it")


def _same_item(one: sa.Table, other: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(one.c.job == other.c.job, one.c.idx == other.c.idx)


def _stored_result(*columns: Any) -> StoredResult:
    result = StoredResult(*columns)
    error = orjson.loads(columns[8]) if columns[8] else None
    return replace(result, error=error, usage=orjson.loads(columns[9]))


def _job_record(row: Mapping[Any, Any]) -> JobRecord:
    progress = row["progress"]
    return JobRecord(
        key=row["job"],
        counts={status: row[status] for status in STATUSES},
        agents=orjson.loads(row["agents"]),
        progress=Progress.from_dict(orjson.loads(progress)) if progress else None,
        **{name: row[name] for name in row if name not in ("job", "agents", "progress", "last_seq", *STATUSES)},
    )


def _chunks(rows: Iterable[T], size: Callable[[T], int] = lambda row: 0) -> Iterator[list[T]]:
    """Cut `rows` into lists of at most `_CHUNK`, and of about `_PAGE_BYTES`."""
    chunk: list[T] = []
    n_bytes = 0
    for row in rows:
        chunk.append(row)
        n_bytes += size(row)
        if len(chunk) == _CHUNK or n_bytes >= _PAGE_BYTES:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk


def _engine(uri: str, *, is_writer: bool) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
        pragmas = (
            # FULL: an acknowledged job or outcome survives a power cut, not just a crash.
            ("journal_mode = WAL", "synchronous = FULL", "journal_size_limit = 67108864", "cache_size = -8192")
            if is_writer
            else ("query_only = 1", "cache_size = -2048")
        )
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    pool = sa.pool.StaticPool if is_writer else sa.pool.NullPool
    engine = sa.create_engine("sqlite://", creator=connect, poolclass=pool)
    # sqlite3 begins transactions by itself only before some statements; SQLAlchemy's documentation gives this remedy.
    begin = "BEGIN IMMEDIATE" if is_writer else "BEGIN"
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _quoted(file: Path) -> str:
    return quote(str(file.absolute()))


def _lock(data_dir: Path) -> int:
    """Take the directory's write lock; it ends with the process, however that ends."""
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for _ in range(_LOCK_TRIES):  # one who only looks holds it for an instant
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(_LOCK_PAUSE_S)
    else:
        holder = os.read(descriptor, 32).decode(errors="replace").partition("\n")[0]
        os.close(descriptor)
        raise StoreLockedError(str(data_dir), holder) from None
    _write_holder(descriptor, [])
    return descriptor


def _write_holder(descriptor: int, job_ids: Sequence[str]) -> None:
    """Write into the lock file who holds it, and which jobs it runs."""
    text = "".join(f"{line}\n" for line in (os.getpid(), *job_ids)).encode()
    os.pwrite(descriptor, text, 0)
    os.truncate(descriptor, len(text))


def running_jobs(data_dir: Path) -> set[str]:
    """Return the ids of the jobs of a data directory that a process is running now."""
    return set((data_dir / "lock").read_text().split()[1:]) if is_locked(data_dir) else set()


def is_locked(data_dir: Path) -> bool:
    """Tell whether a process is writing to the data directory."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
