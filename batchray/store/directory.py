"""The lock of a data directory: which process writes to it, and which jobs it runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path

from batchray.errors import StoreLockedError

_LOCK_TRIES, _LOCK_PAUSE_S = 5, 0.05


def lock(data_dir: Path) -> int:
    """Take the directory's write lock.  It ends with the process, however that ends.

    Returns the lock's file descriptor.  Raises StoreLockedError if another process has it.
    """
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for _ in range(_LOCK_TRIES):  # `is_locked` of another process holds it for an instant
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(_LOCK_PAUSE_S)
    else:
        holder = os.read(descriptor, 32).decode(errors="replace").partition("\n")[0]
        os.close(descriptor)
        raise StoreLockedError(str(data_dir), holder) from None
    write_holder(descriptor, [])
    return descriptor


def write_holder(descriptor: int, job_ids: Sequence[str]) -> None:
    """Write the process id and the running jobs of the holder into the lock file."""
    text = "".join(f"{line}\n" for line in (os.getpid(), *job_ids)).encode()
    os.pwrite(descriptor, text, 0)
    os.truncate(descriptor, len(text))


def running_jobs(data_dir: Path) -> set[str]:
    """Return the ids of the jobs of a data directory that a process runs now."""
    return set((data_dir / "lock").read_text().split()[1:]) if is_locked(data_dir) else set()


def is_locked(data_dir: Path) -> bool:
    """Return whether a process has the data directory open for writing."""
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
