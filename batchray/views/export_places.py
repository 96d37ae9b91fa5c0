"""Writes files to the places of exports, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batchray.batch.places import LocalPlace, Place, RemotePlace
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
def writing(place: Place) -> Iterator[Any]:
    """Open a file for writing, which replaces what is there once the block has ended without an error.

    Raises OSError.
    """
    match place:
        case LocalPlace():
            with atomic_write(place.path) as file:
                yield file
        case RemotePlace():
            is_store = place.system.type_name in _OBJECT_STORES
            path = place.path if is_store else f"{place.path}.part"
            with place.system.open_output_stream(path) as file:
                yield file
            if not is_store:
                place.system.move(path, place.path)


def delete(place: Place) -> None:
    """Delete a file, if it is there.  Raises OSError."""
    match place:
        case LocalPlace():
            place.path.unlink(missing_ok=True)
        case RemotePlace():
            from pyarrow.fs import FileType

            if place.system.get_file_info(place.path).type != FileType.NotFound:
                place.system.delete_file(place.path)
