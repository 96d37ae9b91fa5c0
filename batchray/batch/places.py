"""Places of files: a local path, or an address such as s3://bucket/file that a file system opens."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from batchray.errors import BatchFormatError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def place_of(location: str | Path) -> Place:
    """Return the place of a path or an address.  Raises BatchFormatError if nothing here opens such an address."""
    text = str(location)
    if not _ADDRESS.match(text):
        return LocalPlace(Path(location))
    if text.startswith("file://"):
        return LocalPlace(Path(unquote(urlsplit(text).path)))
    return RemotePlace.at(text)


def is_on_disk(location: str | Path) -> bool:
    """Whether a location is a file or a directory of this machine, which can be read at any time; a pipe is not."""
    place = place_of(location)
    return isinstance(place, LocalPlace) and (place.path.is_file() or place.path.is_dir())


class Place(ABC):
    """A file or a directory.  `name` is the last part of its path, `shown` is what errors call it."""

    name: str
    shown: str

    @abstractmethod
    def is_directory(self) -> bool:
        """Return whether it is a directory."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open the file for reading, at any position.  Raises BatchFormatError."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names in a directory."""

    @abstractmethod
    def child(self, name: str) -> Place:
        """Return the place of a name in a directory."""

    def read(self) -> bytes:
        """Return the content of a small file."""
        with self.open() as file:
            return file.read()


class LocalPlace(Place):
    """A path of this machine."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.shown = path, path.name, str(path)

    def is_directory(self) -> bool:
        """Return whether it is a directory."""
        return self.path.is_dir()

    def open(self) -> BinaryIO:
        """Open the file for reading, at any position.  Raises BatchFormatError."""
        try:
            return self.path.open("rb")
        except OSError as error:
            raise BatchFormatError(f"cannot be read: {error.strerror}", file=self.shown) from None

    def names(self) -> list[str]:
        """Return the names in a directory."""
        return sorted(each.name for each in self.path.iterdir())

    def child(self, name: str) -> Place:
        """Return the place of a name in a directory."""
        return LocalPlace(self.path / name)


class RemotePlace(Place):
    """A path in a file system of pyarrow, which may be one of fsspec."""

    def __init__(self, system: Any, path: str, shown: str) -> None:
        self.system, self.path = system, path
        self.name, self.shown = PurePosixPath(path).name, shown

    @classmethod
    def at(cls, address: str) -> RemotePlace:
        """Return the place of an address.  Raises BatchFormatError."""
        shown, parts = without_secrets(address), urlsplit(address)
        if not parts.netloc.strip("@") and not parts.path.strip("/"):
            raise BatchFormatError("the address names no file", file=address)
        with _readable(shown):
            system, path = _system_of(address, shown)
        return cls(system, path, shown)

    def is_directory(self) -> bool:
        """Return whether it is a directory."""
        from pyarrow.fs import FileType

        with _readable(self.shown):
            return bool(self.system.get_file_info(self.path).type == FileType.Directory)

    def open(self) -> BinaryIO:
        """Open the file for reading, at any position.  Raises BatchFormatError."""
        with _readable(self.shown):
            return cast(BinaryIO, self.system.open_input_file(self.path))

    def names(self) -> list[str]:
        """Return the names in a directory."""
        from pyarrow.fs import FileSelector

        with _readable(self.shown):
            return sorted(each.base_name for each in self.system.get_file_info(FileSelector(self.path)))

    def child(self, name: str) -> Place:
        """Return the place of a name in a directory."""
        return RemotePlace(self.system, f"{self.path.rstrip('/')}/{name}", f"{self.shown.rstrip('/')}/{name}")


def without_secrets(address: str) -> str:
    """Return an address without a user, a password and a query, which may hold keys."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _system_of(address: str, shown: str) -> tuple[Any, str]:
    """Return the file system of an address, of pyarrow or else of fsspec, and the path in it."""
    scheme = address.partition("://")[0]
    try:
        from pyarrow import fs
    except ImportError:
        reason = f"{scheme}:// addresses are read with pyarrow, which is not installed: pip install 'batchray[data]'"
        raise BatchFormatError(reason, file=shown) from None
    try:
        system, path = fs.FileSystem.from_uri(address)
    except ValueError as error:
        if "nrecognized filesystem type" not in str(error):
            raise
        system, path = _fsspec_system(address, scheme, shown)
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path
    return system, path


def _fsspec_system(address: str, scheme: str, shown: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        reason = f"{scheme}:// addresses are read with fsspec, which is not installed: pip install fsspec"
        raise BatchFormatError(reason, file=shown) from None
    try:
        system, path = url_to_fs(address)
    except ImportError as error:  # the message names the package
        raise BatchFormatError(" ".join(str(error).split()), file=shown) from None
    return system, str(path)


@contextmanager
def _readable(shown: str) -> Iterator[None]:
    """Raise BatchFormatError for what a file system says."""
    try:
        yield
    except FileNotFoundError:
        raise BatchFormatError("there is no such file", file=shown) from None
    except BatchFormatError:
        raise
    except Exception as error:  # noqa: BLE001  # file systems of fsspec raise errors of many packages
        reason = " ".join(str(error).split())[:300]
        raise BatchFormatError(f"cannot be read: {reason}", file=shown) from None
