"""Control requests for a running job: what may be asked for, and where the process that runs the job reads it.

A request is kept in one of two places: for a data directory that one process has locked, in a file that other
processes may write to; for a shared database, in the row of the job's lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchray.errors import LeaseLostError, StoreError
from batchray.executors.base import own_pause
from batchray.store import LedJob, Store
from batchray.support.files import atomic_write, sync_directory

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""How often the process that runs a job asks for control requests."""
# How often a shared database is asked.  The renewals of the lease are too rare for a cancel.
_READ_LEASE_S = 1.0


class ControlRequest(BaseModel):
    """A request to a running job; None leaves a setting as it is."""

    model_config = ConfigDict(frozen=True)

    is_paused: bool | None = None
    is_canceled: bool | None = None
    max_in_flight: Annotated[int, Field(ge=1)] | None = None


class ControlFile:
    """The control channel of a data directory: a small JSON file for each job.  See `ControlChannel`."""

    def __init__(self, data_dir: Path, job_id: str) -> None:
        self._file = data_dir / "control" / f"{job_id}.json"
        self._paused_because: str | None = None

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any] | None:
        """Return what is asked for; None if the file cannot be read now.

        A pause of the job's own is written too.
        """
        if own := own_pause(self._paused_because, snapshot):
            self._paused_because = snapshot.get("paused_because")
            self.ask(**own)
        return self.read()

    def read(self) -> dict[str, Any] | None:
        """Return the fields of `ControlRequest` that were asked for; None if the file cannot be read now."""
        try:
            return ControlRequest.model_validate_json(self._file.read_bytes()).model_dump(exclude_none=True)
        except FileNotFoundError:
            return {}
        except (ValidationError, OSError) as error:  # another program wrote or locked it
            logger.warning("%s is ignored: %s", self._file, error)
            return None

    def ask(self, **fields: Any) -> None:
        """Add to what is asked for; on disk when this returns.  Raises OSError."""
        self._write(ControlRequest(**{**(self.read() or {}), **fields}))

    def close(self) -> None:
        """Remove what was meant for this run of the job only: everything except a cancel."""
        asked, kept = self.read() or {}, {"is_canceled": True}
        if not asked.get("is_canceled"):
            self.clear()
        elif asked != kept:
            try:
                self._write(ControlRequest(**kept))
            except OSError as error:
                logger.warning("%s cannot be written: %s", self._file, error)

    def clear(self) -> None:
        """Remove all requests: the job has ended."""
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", self._file, error)

    def _write(self, request: ControlRequest) -> None:
        directory = self._file.parent
        directory.mkdir(exist_ok=True)
        with atomic_write(self._file, has_many_writers=True) as file:
            file.write(request.model_dump_json().encode())
        sync_directory(directory.parent)


class LeaseChannel:
    """The control channel of a shared database: the lease's row, which this process also renews.

    See `ControlChannel`.
    """

    def __init__(self, store: Store, job: LedJob, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._job, self._clock = store, job, clock
        self._reads_at = self._renews_at = clock()
        self._asked: dict[str, Any] = {}
        self._paused_because: str | None = None

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """Renew the lease if that is due, and return what is asked for, as last read.

        A pause of the job's own is stored as a request too.  Raises LeaseLostError if another process leads the job.
        """
        if own := own_pause(self._paused_because, snapshot):
            self._paused_because = snapshot.get("paused_because")
            await asyncio.to_thread(partial(self._store.leases.request, self._job, **own))
            self._asked = {**self._asked, **own}
        now = self._clock()
        if now < min(self._reads_at, self._renews_at):
            return self._asked
        read = self._store.leases.requested
        if now >= self._renews_at:
            read, self._renews_at = self._store.leases.renew, now + self._store.leases.duration_s / 3
        self._reads_at = now + _READ_LEASE_S
        try:
            # Not on the writer's thread, which may be busy with a large batch.
            self._asked = await asyncio.to_thread(read, self._job)
        except StoreError as error:
            logger.warning("job %s: its lease was not renewed, or not read: %s", self._job.id, error)
        return self._asked

    def close(self) -> None:
        """Release the lease, so that another process can take it at once."""
        self._store.database.call_soon(self._store.leases.release, self._job)


def leave_request(data_dir: Path, url: str | None, job_id: str, request: ControlRequest) -> None:
    """Leave a request where the process that runs a job reads it; on disk when this returns.

    `url` is that of a shared database.  Raises OSError or StoreError.
    """
    fields = request.model_dump(exclude_none=True)
    if url is None:
        ControlFile(data_dir, job_id).ask(**fields)
    else:
        with Store.open(data_dir, url) as store:
            store.leases.request(store.jobs.get(job_id), **fields)


def reopen_job(store: Store, job_id: str) -> None:
    """Reopen an ended job as `Jobs.reopen` does, and remove the control requests of its earlier runs."""
    ControlFile(store.data_dir, job_id).clear()
    store.jobs.reopen(job_id)


@asynccontextmanager
async def renewing_lease(store: Store, record: LedJob) -> AsyncIterator[None]:
    """Renew a job's lease inside this block, if the store has leases that run out."""

    async def renew() -> None:
        channel = LeaseChannel(store, record)
        while True:
            with suppress(LeaseLostError):  # raised again when the job begins to run
                await channel.update({})
            await asyncio.sleep(POLL_S)

    renewing = asyncio.create_task(renew()) if store.is_shared else None
    try:
        yield
    finally:
        if renewing is not None:
            renewing.cancel()
            await asyncio.wait([renewing])
