"""Disconnects readers that take nothing of what was sent to them."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import struct
import termios
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from aiohttp import web

logger = logging.getLogger(__name__)

_LOOKS_PER_LIMIT = 4
# Where Linux tells how many bytes the peer has acknowledged.  Source: linux/tcp.h, tcp_info.tcpi_bytes_acked.
_TCP_INFO_BYTES, _BYTES_ACKED = 128, struct.Struct("120xQ")


class ReaderProgress(NamedTuple):
    """How far a connection has delivered the bytes that were sent on it.

    `n_waiting` bytes have not been received by the peer's kernel.  `progress` changes when it receives some.
    """

    n_waiting: int
    progress: int

    @classmethod
    def of(cls, transport: asyncio.Transport) -> ReaderProgress:
        """Return the state of a connection."""
        n_waiting = transport.get_write_buffer_size()
        progress = -n_waiting
        connection = transport.get_extra_info("socket")
        with suppress(OSError, ValueError, struct.error):  # not Linux, or the socket has just been closed
            [n_in_kernel] = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
            n_waiting += n_in_kernel
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            [progress] = _BYTES_ACKED.unpack(info)
        return cls(n_waiting, progress)


class StalledReaders:
    """Finds connections whose peers take nothing for `idle_s` seconds although there is something to take."""

    def __init__(self, idle_s: float, look: Callable[[asyncio.Transport], ReaderProgress] = ReaderProgress.of) -> None:
        self._idle_s, self._look = idle_s, look
        self._waiting: dict[asyncio.Transport, tuple[int, float]] = {}

    def stalled(self, transports: Iterable[asyncio.Transport], now: float) -> list[asyncio.Transport]:
        """Look at all open connections; return those that have stalled.  `now` is in seconds."""
        waiting = {}
        for transport in transports:
            seen = self._look(transport)
            if seen.n_waiting:
                before, since = self._waiting.get(transport, (None, now))
                waiting[transport] = seen.progress, since if seen.progress == before else now
        self._waiting = waiting
        return [transport for transport, (_, since) in waiting.items() if now - since >= self._idle_s]

    async def run(self, server: web.Server) -> None:
        """Disconnect the stalled readers of a server, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._idle_s / _LOOKS_PER_LIMIT)
            open_transports = [each.transport for each in server.connections if each.transport is not None]
            found = self.stalled(open_transports, loop.time())
            for transport in found:
                transport.abort()
            if found:
                logger.info("disconnected %d readers that took nothing for %g s", len(found), self._idle_s)
