"""Whether the disk has space, and a reserve that is released when it is full."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from pathlib import Path

from batchray.errors import StoreFullError
from batchray.support.files import atomic_write

logger = logging.getLogger(__name__)

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


class DiskRoom:
    """Whether the disk of a database has space for new work.

    `name` is the database's.  `reserve` is released when the disk is full; None for a reader, and for a database on
    another machine.
    """

    def __init__(self, name: str, reserve: Reserve | None) -> None:
        self._name, self._reserve = name, reserve
        self._lock = threading.Lock()
        self._is_full = False

    def is_free(self) -> bool:
        """Return whether the disk has space for new work.

        False from the first write that finds the disk full until the reserve is allocated again.
        """
        if not self._is_full:
            return True
        with self._lock:
            if self._is_full and self._reserve is not None and self._reserve.acquire():
                logger.info("the disk of %s has space again", self._name)
                self._is_full = False
            return not self._is_full

    def check(self) -> None:
        """Raise StoreFullError while the disk has no space for new work."""
        if not self.is_free():
            raise StoreFullError(f"the disk of {self._name} is full; make room there")

    def acquire(self) -> None:
        """Allocate the reserve.  If there is no space for it, the disk counts as full from the start."""
        self._is_full = self._reserve is not None and not self._reserve.acquire()
        if self._is_full:
            logger.warning("the disk of %s is full: nothing new is accepted", self._name)

    def release(self) -> bool:
        """Release the reserve because the disk is full; return whether there is one."""
        if self._reserve is None:
            return False
        with self._lock:
            if not self._is_full:
                logger.warning("the disk of %s is full: jobs wait until it has space", self._name)
            self._is_full = True
            self._reserve.release()
        return True


def is_no_room(error: OSError) -> bool:
    """Return whether a write failed because the disk is full, or a quota or limit is reached."""
    return error.errno in _NO_ROOM
