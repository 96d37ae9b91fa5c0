"""The commands and calls that continue, retry or show a job."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

DEFAULT_DATA_DIR = Path(".batchray")


class JobLocation(NamedTuple):
    """Where a job is stored: a data directory, and perhaps a database."""

    data_dir: Path
    url: str | None = None

    @property
    def options(self) -> str:
        """The options with which a command finds the job.  A URL is not shown: it may have a password in it."""
        if self.url is not None:
            return " --database-url URL"
        return "" if self._is_default else f" --data-dir {shlex.quote(str(self.data_dir))}"

    @property
    def arguments(self) -> str:
        """The same as arguments of a call in Python."""
        if self.url is not None:
            return ", database_url=URL"
        return "" if self._is_default else f", data_dir={str(self.data_dir)!r}"

    @property
    def _is_default(self) -> bool:
        return self.data_dir.absolute() == DEFAULT_DATA_DIR.absolute()


def in_python(verb: str, job_id: str, place: JobLocation, agents: Iterable[Mapping[str, Any]]) -> str:
    """Return the call that resumes or retries a job.  `agents` are their settings as they were stored with the job.

    A function that cannot be imported by name, such as one of a notebook, is not stored: it is passed again.
    """
    has_all = all((each.get("model") or each.get("run")) and None not in (each.get("tools") or ()) for each in agents)
    again = "" if has_all else ", agents=agents"
    return f"batchray.{verb}({job_id!r}{again}{place.arguments})"


def on_command_line(words: str, job_id: str, place: JobLocation, *more: str) -> str:
    """Return a command about a job; `more` are its further arguments and options."""
    return " ".join(["batchray", words, job_id, *more]) + place.options
