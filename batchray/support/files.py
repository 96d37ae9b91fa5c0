"""Atomic file writes: a reader sees the old content or the new, never a part of it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# Errors of a file system that cannot sync directories, and of a directory without read permission.
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES})

UNFINISHED = ".part"
"""The end of the name of a file that is being written."""


@contextmanager
def atomic_write(
    path: Path,
    *,
    encoding: str | None = None,
    permissions: int = 0o666,
    has_many_writers: bool = False,
    is_synced: bool = True,
) -> Iterator[IO[Any]]:
    """Open a temporary file in the same directory; it replaces `path` when the block ends.

    The content and the new name are on disk when the block has ended, unless `is_synced` is False.  If the block
    raises, `path` stays as it was and the temporary file is removed.  The file is opened for text if `encoding` is
    given, else for bytes.  `permissions` are those of a new file, before the umask.  With `has_many_writers` the name
    of the temporary file has the ids of process and thread, which keeps writers apart; without, the next write replaces
    what a killed process left.  Raises OSError.
    """
    temporary = path.with_name(
        f"{path.name}{f'.{os.getpid()}.{threading.get_ident()}' if has_many_writers else ''}{UNFINISHED}"
    )
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, permissions)
    try:
        with open(descriptor, "w" if encoding else "wb", encoding=encoding) as file:
            yield file
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if is_synced:
        sync_directory(path.parent)


def check_can_write(path: Path) -> None:
    """Raise OSError if `atomic_write` cannot write a file: make its temporary file and remove it."""
    temporary = path.with_name(path.name + UNFINISHED)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:  # another process is writing, or was killed while it did
        os.close(os.open(temporary, os.O_WRONLY))
    else:
        temporary.unlink()


def sync_directory(directory: Path) -> None:
    """Write a directory's entries to disk, so that a file created or renamed in it survives a power cut.

    Does nothing if the file system cannot do so.  Raises OSError.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
