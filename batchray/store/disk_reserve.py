"""A reserve of disk space, released when the disk is full."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from batchray.support.files import atomic_write

RESERVE_BYTES = 16 * 1024 * 1024
"""Enough for the log of deletions in small steps, and for the outcomes of one window at a shutdown."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Reserve:
    """A file that occupies space until the disk is full.  It is then deleted, and allocated again later."""

    def __init__(self, data_dir: Path, n_bytes: int = RESERVE_BYTES) -> None:
        self._file, self._n_bytes = data_dir / "reserve", n_bytes

    @property
    def is_held(self) -> bool:
        """Whether the space is allocated."""
        return self._file.exists()

    def acquire(self) -> bool:
        """Allocate the file if the disk has twice its size free, or it would come and go; return whether it exists."""
        if self.is_held:
            return True
        if shutil.disk_usage(self._file.parent).free < 2 * self._n_bytes:
            return False
        try:
            with atomic_write(self._file) as file:
                os.posix_fallocate(file.fileno(), 0, self._n_bytes)
        except OSError as error:
            if not is_no_room(error):
                raise
        return self.is_held

    def release(self) -> None:
        """Free the space for the next writes."""
        self._file.unlink(missing_ok=True)


def is_no_room(error: OSError) -> bool:
    """Return whether a write failed because the disk is full, or a quota or limit is reached."""
    return error.errno in _NO_ROOM
