"""Accepts connections, never more than there are file descriptors for.

asyncio's own server has no limit.  When the descriptors run out, it logs a traceback for each attempt to accept, and
makes a hundred attempts at a time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from batchray.config import ServerSettings
from batchray.server.connection_pool import RESERVE, ConnectionPool
from batchray.server.connections import ClientConnection
from batchray.server.request_rules import guarded, noticed
from batchray.support.descriptors import connections_that_fit
from batchray.support.rare_log import RareLog

logger = logging.getLogger(__name__)

# The system keeps connections that wait to be accepted, up to this number or its own limit.
_BACKLOG = 4096
# Connections accepted before other work gets its turn.
_BATCH = 64
# How long to wait after the system has refused to accept a connection.
_RETRY_S = 0.2


@asynccontextmanager
async def bound(host: str, port: int) -> AsyncIterator[list[socket.socket]]:
    """Yield a socket for each address of `host`, on which nothing listens yet.  Raises OSError."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    sockets = [each.dup() for each in server.sockets]
    server.close()
    await server.wait_closed()
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


def max_connections(settings: ServerSettings) -> int:
    """Return how many connections may be open: as set, but at most half of what the limit of open files allows.

    The other half is for what the requests of the connections need, such as calls of models.
    """
    possible = max(1, connections_that_fit() // 2 - RESERVE)
    if settings.max_connections <= possible:
        return settings.max_connections
    logger.warning(
        "max_connections is lowered from %d to %d: this process may not open more files (ulimit -n)",
        settings.max_connections,
        possible,
    )
    return possible


@asynccontextmanager
async def listening(
    sockets: Sequence[socket.socket], server: web.Server, settings: ServerSettings, options: dict[str, Any]
) -> AsyncIterator[None]:
    """Listen inside the block on `sockets`.  `options` are those of aiohttp's RequestHandler."""
    loop = asyncio.get_running_loop()
    pool = ConnectionPool[Guest | ClientConnection](max_connections(settings))
    server.request_factory = noticed(server.request_factory)
    server.request_handler = guarded(server.request_handler)
    listener = Listener(sockets, pool, lambda: ClientConnection(server, pool, loop, **options), settings.upload_idle_s)
    listener.start()
    try:
        yield
    finally:
        listener.close()


class Guest:
    """An accepted socket on which nothing has arrived yet.  It costs a tenth of a connection's time and memory."""

    __slots__ = ("_expiry", "_loop", "socket")

    def __init__(self, accepted: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.socket, self._loop = accepted, loop
        self._expiry: asyncio.TimerHandle | None = None

    def wait(self, idle_s: float, on_bytes: Callable[[Guest], None], on_silence: Callable[[Guest], None]) -> None:
        """Call one of the two when something has arrived, or nothing for `idle_s` seconds."""
        self._loop.add_reader(self.socket, on_bytes, self)
        self._expiry = self._loop.call_later(idle_s, on_silence, self)

    def has_bytes(self) -> bool:
        """Return whether something has arrived, not the end of the connection alone."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:  # woken for nothing: the connection waits for more
            return True
        except OSError:  # its client has gone
            return False

    def release(self) -> socket.socket:
        """Return the socket, which is not waited for any more."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._loop.remove_reader(self.socket)
        return self.socket

    def drop(self) -> None:
        """Close the socket."""
        self.release().close()


class Listener:
    """Accepts connections on listening sockets; `connect` makes the protocol of one that has sent something."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        pool: ConnectionPool[Guest | ClientConnection],
        connect: Callable[[], ClientConnection],
        idle_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets, self._pool, self._connect, self._idle_s = sockets, pool, connect, idle_s
        self._starting = set[asyncio.Task[None]]()
        self._retries = dict[socket.socket, asyncio.TimerHandle]()
        self._refusals = RareLog(logger, logging.ERROR, "no connection can be accepted: %s")

    def start(self) -> None:
        """Listen.  Raises OSError."""
        for each in self._sockets:
            each.setblocking(False)
            each.listen(_BACKLOG)
            self._loop.add_reader(each, self._accept, each)

    def close(self) -> None:
        """Stop listening, and close connections on which nothing has arrived."""
        for retry in self._retries.values():
            retry.cancel()
        for each in self._sockets:
            self._loop.remove_reader(each)
            each.close()
        for guest in self._pool:
            if isinstance(guest, Guest):
                self._end(guest)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:  # its client has gone
                continue
            except OSError as error:
                self._refusals.log(error.strerror)
                self._pause(listening)
                return
            accepted.setblocking(False)
            guest = Guest(accepted, self._loop)
            self._pool.add(guest)
            guest.wait(self._idle_s, self._begin, self._end)

    def _pause(self, listening: socket.socket) -> None:
        """Stop accepting for a moment: the system has no descriptor left, and would report this again and again."""
        self._pool.make_room()
        self._loop.remove_reader(listening)
        self._retries[listening] = self._loop.call_later(
            _RETRY_S, self._loop.add_reader, listening, self._accept, listening
        )

    def _begin(self, guest: Guest) -> None:
        """Read from a connection: its first bytes, or its end, have arrived."""
        if not guest.has_bytes():
            self._end(guest)
            return
        connection = self._connect()
        connection.is_reserve = self._pool.is_in_reserve(guest)
        self._pool.replace(guest, connection)
        starting = self._loop.create_task(self._read(guest.release(), connection))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)

    async def _read(self, accepted: socket.socket, connection: ClientConnection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError:  # its client has gone
            self._pool.remove(connection)
            accepted.close()

    def _end(self, guest: Guest) -> None:
        self._pool.remove(guest)
        guest.drop()
