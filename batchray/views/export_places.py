"""Writes files to the places of exports, whole or not at all."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batchray.batch.places import LocalPlace, Place, RemotePlace
from batchray.errors import ConfigError
from batchray.support.files import atomic_write

# Object stores show an object once all of it is there; elsewhere a file gets its name at its end.
_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})


def make_directory(place: Place) -> None:
    """Make a directory and those above it, unless they are there.  Raises OSError."""
    match place:
        case LocalPlace():
            place.path.mkdir(parents=True, exist_ok=True)
        case RemotePlace():
            place.system.create_dir(place.path, recursive=True)


@contextmanager
def writing(place: Place, *, is_synced: bool = True) -> Iterator[Any]:
    """Open a file for writing, which replaces what is there once the block has ended without an error.

    A link stays, and the file behind it is replaced; a pipe or a device is written to.  Unless `is_synced`, the file
    survives the end of this process at once, and a power cut a little later.  Raises OSError.
    """
    match place:
        case LocalPlace() if place.path.exists() and not place.path.is_file() and not place.path.is_dir():
            with place.path.open("wb") as file:
                yield file
        case LocalPlace():
            with atomic_write(place.path.resolve(), is_synced=is_synced) as file:
                yield file
        case RemotePlace():
            is_store = place.system.type_name in _OBJECT_STORES
            path = place.path if is_store else f"{place.path}.part"
            try:
                with place.system.open_output_stream(path) as file:
                    yield file
            except BaseException:  # the stream was closed with what had been written, which looks whole in a store
                place.system.delete_file(path)
                raise
            if not is_store:
                place.system.move(path, place.path)


@contextmanager
def packed(file: Any, name: str) -> Iterator[Any]:
    """Compress what is written to a file if its name ends in .gz or .zst.  Equal content gives equal bytes."""
    if name.lower().endswith(".gz"):
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as inner:
            yield inner
    elif name.lower().endswith(".zst"):
        try:
            import pyarrow as pa
        except ImportError:
            reason = "zstd is written with pyarrow, which is not installed: pip install 'batchray[data]'; or use gzip"
            raise ConfigError(reason, name) from None
        with pa.CompressedOutputStream(pa.PythonFile(_KeptOpen(file), "w"), "zstd") as inner:
            yield inner
    else:
        yield file


class _KeptOpen:
    """A file that stays open when the stream that compresses into it is closed."""

    closed = False

    def __init__(self, file: Any) -> None:
        self.write, self.flush = file.write, file.flush

    def close(self) -> None:
        """Do nothing."""


def delete(place: Place) -> None:
    """Delete a file, if it is there.  Raises OSError."""
    match place:
        case LocalPlace():
            place.path.unlink(missing_ok=True)
        case RemotePlace():
            from pyarrow.fs import FileType

            if place.system.get_file_info(place.path).type != FileType.NotFound:
                place.system.delete_file(place.path)
