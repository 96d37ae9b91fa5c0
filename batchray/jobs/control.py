"""Wishes for a running job, left by other processes in the data directory or in a shared database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchray.errors import StoreError
from batchray.store import JobRecord, Store
from batchray.support.files import atomic_write, sync_directory

logger = logging.getLogger(__name__)

_HEAR_S = 1.0
"""How often a leader asks what others want; a lease alone would be renewed too seldom for one who cancels."""


class ControlRequest(BaseModel):
    """What is asked for of a running job; None asks for nothing."""

    model_config = ConfigDict(frozen=True)

    is_paused: bool | None = None
    is_canceled: bool | None = None
    max_in_flight: Annotated[int, Field(ge=1)] | None = None


class ControlFile:
    """A small JSON file beside the store, read by the job's driver a few times a second.  See `ControlChannel`."""

    def __init__(self, data_dir: Path, job_id: str) -> None:
        self._file = data_dir / "control" / f"{job_id}.json"

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any] | None:
        """Return what was asked for so far; None where the file cannot be read now."""
        return self.read()

    def read(self) -> dict[str, Any] | None:
        """Return the wishes: `is_paused`, `is_canceled`, `max_in_flight`, as far as there are any; None as `update`."""
        try:
            return ControlRequest.model_validate_json(self._file.read_bytes()).model_dump(exclude_none=True)
        except FileNotFoundError:
            return {}
        except (ValidationError, OSError) as error:  # not of our making
            logger.warning("%s is ignored: %s", self._file, error)
            return None

    def ask(self, **wishes: Any) -> None:
        """Add wishes to those that are there; on disk when this returns."""
        self._write(ControlRequest(**{**(self.read() or {}), **wishes}))

    def close(self) -> None:
        """Forget what only concerns this run of the job: all but a cancel, which is for the next one too."""
        asked, kept = self.read() or {}, {"is_canceled": True}
        if not asked.get("is_canceled"):
            self.forget()
        elif asked != kept:
            try:
                self._write(ControlRequest(**kept))
            except OSError as error:
                logger.warning("%s cannot be written: %s", self._file, error)

    def forget(self) -> None:
        """Forget all wishes: the job has ended."""
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", self._file, error)

    def _write(self, wishes: ControlRequest) -> None:
        directory = self._file.parent
        directory.mkdir(exist_ok=True)
        with atomic_write(self._file, encoding="utf-8") as file:
            file.write(wishes.model_dump_json())
        sync_directory(directory.parent)  # the directory itself may be new


def reopen_job(store: Store, job_id: str) -> int:
    """Open an ended job again as `Jobs.reopen` does; what was asked before its end is not for what comes now."""
    ControlFile(store.data_dir, job_id).forget()
    return store.jobs.reopen(job_id)


class LeaseChannel:
    """Renews the lease under which this process leads a job, and hears what others ask of it.  See `ControlChannel`."""

    def __init__(self, store: Store, job: JobRecord, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._job, self._clock = store, job, clock
        self._hears_at = self._renews_at = clock()
        self._heard: dict[str, Any] = {}

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """Renew the lease where it is time, and return what was asked for so far, as far as it is known.

        Raises LeaseLostError where another process leads the job.
        """
        now = self._clock()
        if now < min(self._hears_at, self._renews_at):
            return self._heard
        hear = self._store.leases.requested
        if now >= self._renews_at:
            hear, self._renews_at = self._store.leases.renew, now + self._store.leases.duration_s / 3
        self._hears_at = now + _HEAR_S
        try:
            # Not on the writer's thread, where a large batch may be on its way.
            self._heard = await asyncio.to_thread(hear, self._job)
        except StoreError as error:
            logger.warning("job %s: its lease was not renewed, or not read: %s", self._job.id, error)
        return self._heard

    def close(self) -> None:
        """Let another server go on at once."""
        self._store.database.call_soon(self._store.leases.release, self._job)
