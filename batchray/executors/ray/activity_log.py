"""Activity logs: which items were running their own code (tools, callables) when their lane died.

Hundreds of requests share a lane.  If one of them kills it, the others are not suspects: nearly all of them only waited
for their model.  So a lane writes to a memory-mapped file which items are executing.  The file survives even SIGKILL,
and any other lane of the node can read it.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from batchray.executors.ray.exit_report import UNKNOWN_CAUSE, ExitCause, ExitReport, mapped, read_exit_report

_SLOT = struct.Struct("<40sq")  # a job id, and an index
_N_SLOTS = 8192
_LOG_NAME = "batchray-lane-{actor_id}-{pid}"
_REPORT_NAME = "batchray-death-{key}-{pid}"
# No driver still wants to read a file of this age.
_STALE_S = 86_400


class CrashRecord(NamedTuple):
    """The record of a dead lane: the items whose own code it was running, and why it died."""

    executing: list[tuple[str, int]]
    cause: ExitCause


class ActivityLog:
    """The activity log of one lane, which is one process."""

    def __init__(self, actor_id: str, directory: Path) -> None:
        _remove_stale(directory)
        self._exit_report = open_exit_report(directory, actor_id)
        self._file = directory / _LOG_NAME.format(actor_id=actor_id, pid=os.getpid())
        self._slots = mapped(self._file, _SLOT.size * _N_SLOTS)
        self._free = list(range(_N_SLOTS))

    @contextmanager
    def executing(self, job_id: str, index: int) -> Iterator[None]:
        """List an item in the log while its own code runs."""
        if not self._free:  # thousands at once: the rest are not listed, and so not suspects
            yield
            return
        slot = self._free.pop()
        _SLOT.pack_into(self._slots, slot * _SLOT.size, job_id.encode(), index)
        try:
            yield
        finally:
            _SLOT.pack_into(self._slots, slot * _SLOT.size, b"", 0)
            self._free.append(slot)

    def close(self) -> None:
        """Remove the file."""
        self._slots.close()
        self._file.unlink(missing_ok=True)
        self._exit_report.close()


def open_exit_report(directory: Path, key: str) -> ExitReport:
    """Start writing the exit report of this process."""
    return ExitReport(directory / _REPORT_NAME.format(key=key, pid=os.getpid()))


def exit_cause_of(directory: Path, key: str) -> ExitCause | None:
    """Return why a process of this node died; None if it left no report."""
    files = [file for file in directory.glob(_REPORT_NAME.format(key=key, pid="*")) if not file.suffix]
    return next(filter(None, map(read_exit_report, files)), None)


def read_crash_record(directory: Path, actor_id: str) -> CrashRecord | None:
    """Return what a dead lane of this node left; None if there was no such lane here."""
    cause = exit_cause_of(directory, actor_id)
    for file in directory.glob(_LOG_NAME.format(actor_id=actor_id, pid="*")):
        return CrashRecord(list(_executing(file.read_bytes())), cause or UNKNOWN_CAUSE)
    return None if cause is None else CrashRecord([], cause)


def delete_records(directory: Path, key: str) -> None:
    """Delete what a lane or a process of this node left when it died."""
    for name in (_LOG_NAME.format(actor_id=key, pid="*"), _REPORT_NAME.format(key=key, pid="*")):
        for file in directory.glob(name):
            file.unlink(missing_ok=True)


def _executing(slots: bytes) -> Iterator[tuple[str, int]]:
    for job_id, index in _SLOT.iter_unpack(slots):
        if job_id.strip(b"\0"):
            yield job_id.rstrip(b"\0").decode(), index


def _remove_stale(directory: Path) -> None:
    """Delete the files of processes whose whole cluster was killed."""
    for file in directory.glob("batchray-*-*"):
        with contextlib.suppress(OSError):  # another lane was faster, or it is another user's
            pid = re.search(r"-(\d+)(\.crash)?$", file.name)
            is_gone = pid is not None and not Path(f"/proc/{pid[1]}").exists()
            if is_gone and time.time() - file.stat().st_mtime > _STALE_S:
                file.unlink()
