"""Exit reports: files that say how a process ended, by exit status, crash and memory.

The process writes them itself, because Ray only reports a closed connection and discards its workers' exit statuses.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import mmap
import os
import re
import struct
import threading
from pathlib import Path
from typing import IO, NamedTuple

logger = logging.getLogger(__name__)

_STATE = struct.Struct("<qqq")  # whether it exited by itself, with which status, and its resident memory in bytes
_SAMPLE_S = 0.25
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ExitCause(NamedTuple):
    """Why a process ended, in words, and how much memory it held about then."""

    cause: str
    n_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.cause}; it held {self.n_bytes / 2**20:,.0f} MiB of memory" if self.n_bytes else self.cause


UNKNOWN_CAUSE = ExitCause("it was killed by a signal that leaves no trace, as the kernel does if memory runs out")


class ExitReport:
    """The exit report of this process, in files that survive even SIGKILL; `read_exit_report` reads them."""

    def __init__(self, file: Path) -> None:
        self._file, self._pid = file, os.getpid()
        self._state = mapped(file, _STATE.size)
        self._write_memory()
        self._crash = _opened(_crash_file(file))
        faulthandler.enable(self._crash, all_threads=False)
        self._original_exit, os._exit = os._exit, self._exit  # type: ignore[assignment]
        self._is_closed = threading.Event()
        threading.Thread(target=self._sample, name="batchray-memory", daemon=True).start()

    def close(self) -> None:
        """Remove the files: the process keeps running, or ends normally."""
        self._is_closed.set()
        os._exit = self._original_exit
        faulthandler.enable(all_threads=False)
        self._crash.close()
        _remove(self._file)

    def _exit(self, status: int) -> None:
        if os.getpid() == self._pid:  # not a forked child
            self._is_closed.set()
            _STATE.pack_into(self._state, 0, True, status, _resident_bytes())
        self._original_exit(status)

    def _sample(self) -> None:
        """Write how much memory the process holds, a few times a second."""
        while not self._is_closed.wait(_SAMPLE_S):
            self._write_memory()

    def _write_memory(self) -> None:
        _STATE.pack_into(self._state, 0, False, 0, _resident_bytes())


def mapped(file: Path, n_bytes: int) -> mmap.mmap:
    """Map a new file of zeros into memory.  If its disk is full, map memory only, which ends with this process.

    The disk space is reserved at once: writing to a page without disk space would kill the process.
    """
    try:
        with file.open("xb+") as opened:
            os.posix_fallocate(opened.fileno(), 0, n_bytes)
            return mmap.mmap(opened.fileno(), n_bytes)
    except OSError as error:
        logger.warning("no exit report of this process can be written: %s", error)
        file.unlink(missing_ok=True)
        return mmap.mmap(-1, n_bytes)


def _opened(file: Path) -> IO[bytes]:
    try:
        return file.open("xb")
    except OSError as error:
        logger.warning("no crash report of this process can be written: %s", error)
        return Path(os.devnull).open("wb")


def read_exit_report(file: Path) -> ExitCause | None:
    """Return why a process ended, by its exit report; None if there is no such file."""
    try:
        has_exited, status, n_bytes = _STATE.unpack(file.read_bytes())
    except FileNotFoundError:
        return None
    crash = ""
    with contextlib.suppress(FileNotFoundError):  # its disk was full
        crash = _crash_file(file).read_text(errors="replace")
    if has_exited:
        return ExitCause(f"it exited with status {status}", n_bytes)
    return ExitCause(_describe_crash(crash) or UNKNOWN_CAUSE.cause, n_bytes)


def _describe_crash(crash: str) -> str | None:
    """Return the signal and the innermost line of code, from what Python's fault handler wrote."""
    fatal = re.search(r"^Fatal Python error: (.+)$", crash, re.MULTILINE)
    line = re.search(r'^  File "(.+)", line (\d+) in (.+)$', crash, re.MULTILINE)
    if fatal is None:
        return None
    return f"it crashed: {fatal[1]}" + (f" in {line[3]} ({Path(line[1]).name}, line {line[2]})" if line else "")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def _crash_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.crash")


def _remove(file: Path) -> None:
    for each in (file, _crash_file(file)):
        with contextlib.suppress(FileNotFoundError):
            each.unlink()
