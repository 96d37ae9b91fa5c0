"""Wishes for a running job, left in the data directory by other processes: works with any executor."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

logger = logging.getLogger(__name__)


class Wishes(BaseModel):
    """What is asked for of a running job; None asks for nothing."""

    model_config = ConfigDict(frozen=True)

    is_paused: bool | None = None
    is_canceled: bool | None = None
    max_in_flight: Annotated[int, Field(ge=1)] | None = None


class ControlFile:
    """A small JSON file beside the store, read by the job's driver a few times a second.  See `driver.Link`."""

    def __init__(self, data_dir: Path, job_id: str) -> None:
        self._file = data_dir / "control" / f"{job_id}.json"

    async def update(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """Return what was asked for so far."""
        return self.read()

    def read(self) -> dict[str, Any]:
        """Return the wishes: `is_paused`, `is_canceled`, `max_in_flight`, as far as there are any."""
        try:
            return Wishes.model_validate_json(self._file.read_bytes()).model_dump(exclude_none=True)
        except FileNotFoundError:
            return {}
        except (ValidationError, OSError) as error:  # not of our making
            logger.warning("%s is ignored: %s", self._file, error)
            return {}

    def ask(self, **wishes: Any) -> None:
        """Add wishes to those that are there."""
        self._file.parent.mkdir(exist_ok=True)
        draft = self._file.with_suffix(f".{os.getpid()}")
        draft.write_text(Wishes(**{**self.read(), **wishes}).model_dump_json())
        draft.replace(self._file)  # a reader sees the old wishes or the new ones, never half of them

    def close(self) -> None:
        """Forget all wishes."""
        with contextlib.suppress(FileNotFoundError):
            self._file.unlink()
