"""Room on the disk that is kept for the time when there is none."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from batchray.support.files import atomic_write

RESERVE_BYTES = 16 * 1024 * 1024
"""Enough for the log of deletions in small steps, and for the outcomes of a window at a shutdown."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Reserve:
    """A file that takes up room until the disk is full; then it goes, and is made again when there is room."""

    def __init__(self, data_dir: Path, n_bytes: int = RESERVE_BYTES) -> None:
        self._file, self._n_bytes = data_dir / "reserve", n_bytes

    @property
    def is_held(self) -> bool:
        """Whether the room is there to be released."""
        return self._file.exists()

    def hold(self) -> bool:
        """Make the file where there is twice its room, so that it does not come and go; tell whether it is there."""
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
        """Give the room to whoever writes next."""
        self._file.unlink(missing_ok=True)


def is_no_room(error: OSError) -> bool:
    """Tell whether a write failed because the disk, a quota or a limit is full."""
    return error.errno in _NO_ROOM
