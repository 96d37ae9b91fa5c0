"""Replies of models kept on disk, for calls that are made again exactly as before.

A file has the bytes that the provider sent, which the protocol's own parser reads again.  Its name is a digest of the
provider's address, the whole body of the call, and the number of the repeat: a request that is repeated on purpose gets
a reply for each repeat.

The files are in 256 folders, by the first byte of their names, so that each folder has about the same size.  A folder
that has grown to more than its share of the limit loses the files that were used longest ago.  A process that keeps a
reply looks at its folder from time to time, by chance: the larger the reply, the likelier.  So all processes together
list a folder once for each 16th of its share that they write, and need no count that they would have to agree on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from batchray.models.tool_call_ids import tool_call_id
from batchray.support.files import UNFINISHED, atomic_write
from batchray.support.rare_log import RareLog

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 20
_N_FOLDERS = 256
_LOOKS = 16
"""How often a folder is listed while as much is written to it as its share."""
_WRITE_NS = 3600 * 10**9
"""Longer than the writing of a file can take."""


class Chunks(Protocol):
    """The bytes of a reply as they come: a response's content, or a kept reply."""

    async def readany(self) -> bytes:
        """Return the next bytes; none at the end."""
        ...

    def at_eof(self) -> bool:
        """Whether all bytes have been read."""
        ...


class KeptChunks:
    """A kept reply, in one piece."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def readany(self) -> bytes:
        """Return the reply, then nothing."""
        body, self._body = self._body, b""
        return body

    def at_eof(self) -> bool:
        """Whether the reply has been read."""
        return not self._body


class RecordedChunks:
    """The content of a response; what was read from it is in `body`."""

    def __init__(self, content: Chunks) -> None:
        self._content, self._read = content, bytearray()

    @property
    def body(self) -> bytes:
        """The bytes so far."""
        return bytes(self._read)

    async def readany(self) -> bytes:
        """Return the next bytes; none at the end."""
        chunk = await self._content.readany()
        self._read += chunk
        return chunk

    def at_eof(self) -> bool:
        """Whether all bytes have been read."""
        return self._content.at_eof()


class ReplyCache:
    """Replies in files of one directory, which many processes may share, also on a network file system.

    A file that cannot be read, or whose content is damaged, counts as absent; one that cannot be written is a warning.
    They have about `max_bytes` together, a 16th more at times.  A reply that is larger than a 256th of it is not kept.
    """

    def __init__(self, directory: Path, max_bytes: int, rng: Callable[[], float] = random.random) -> None:
        self._directory, self._share = directory, max_bytes // _N_FOLDERS
        self._random = rng
        self._unwritable = RareLog(logger, logging.WARNING, "replies are not cached: %s")

    def for_call(self, repeat: object) -> CallCache:
        """Return the cache as one call sees it."""
        return CallCache(self, repeat)

    def get(self, key: bytes) -> bytes | None:
        """Return the reply with this key."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # deleted in between, or another user's
            os.utime(path)
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return body if digest == _digest(body) else None

    def put(self, key: bytes, body: bytes) -> None:
        """Keep a reply.  It is not synced to disk: after a power cut the call is made again."""
        path, n_bytes = self._path(key), _DIGEST_BYTES + len(body)
        if n_bytes > self._share:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(path, permissions=0o600, has_many_writers=True, is_synced=False) as file:
                file.write(_digest(body) + body)
            if self._random() * self._share < n_bytes * _LOOKS:
                _shrink(path.parent, self._share)
        except OSError as error:
            self._unwritable.log(error)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self._directory / name[:2] / name[2:]


def _shrink(folder: Path, max_bytes: int) -> None:
    """Delete the files of a folder that were used longest ago, until it has at most `max_bytes`.

    Also those that killed writers have left, but not those that are being written.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process has deleted or renamed it
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, entry.path))
    found.sort()
    n_bytes = sum(size for _, size, _ in found)
    for mtime_ns, size, path in found:
        if n_bytes <= max_bytes:
            return
        if path.endswith(UNFINISHED) and found[-1][0] - mtime_ns < _WRITE_NS:
            continue
        with contextlib.suppress(OSError):  # another user's
            Path(path).unlink(missing_ok=True)
            n_bytes -= size


class CallCache:
    """Finds the replies of one call, which may be several HTTP requests, and keeps them once the call is accepted.

    A reply that turns out to be unusable is not kept, so that a retry asks the model.
    """

    def __init__(self, cache: ReplyCache, repeat: object) -> None:
        self._cache, self._repeat = cache, repeat
        self._new: list[tuple[bytes, bytes]] = []
        self._key, self._n_ids = b"", 0

    def key(self, provider: str, body: bytes) -> bytes:
        """Return the key of a request; `provider` is its identity, with the address."""
        parts = (provider.encode(), str(self._repeat).encode(), body)
        self._key = _digest(b"".join(len(part).to_bytes(8, "big") + part for part in parts))
        return self._key

    def tool_call_id(self) -> str:
        """Return an id for a tool call that came without one: the same again when the reply is read again.

        It is a part of the next call of a run, which would not be found otherwise.
        """
        self._n_ids += 1
        number = int.from_bytes(_digest(self._key + self._n_ids.to_bytes(4, "big")), "big")
        return tool_call_id(number)

    async def find(self, key: bytes) -> bytes | None:
        """Return the reply of an earlier call."""
        return await asyncio.to_thread(self._cache.get, key)

    def add(self, key: bytes, body: bytes) -> None:
        """Take a complete reply, for `keep`."""
        self._new.append((key, body))

    async def keep(self) -> None:
        """Keep the replies of this call."""
        for key, body in self._new:
            await asyncio.to_thread(self._cache.put, key, body)
        self._new.clear()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
