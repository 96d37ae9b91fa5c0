"""Facts about processes that may end at any moment: each is read without an error of a process that has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import psutil

T = TypeVar("T")


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """Return the children of a process and their children; by default of this process.  None if it has ended."""
    return _read(lambda: psutil.Process(pid).children(recursive=True), [])


def name_of(process: psutil.Process) -> str:
    """Return the name of a process; empty if it has ended."""
    return _read(process.name, "")


def command_of(process: psutil.Process) -> list[str]:
    """Return the command line of a process; empty if it has ended."""
    return _read(process.cmdline, [])


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; a zombie does not."""
    return _read(lambda: process.is_running() and process.status() != psutil.STATUS_ZOMBIE, False)


def listening_on(process: psutil.Process) -> set[str]:
    """Return the addresses that a process listens on; none if it has ended."""
    return _read(
        lambda: {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}, set()
    )


def named(prefix: str | tuple[str, ...], processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return those whose name starts with `prefix`."""
    return [process for process in processes if name_of(process).startswith(prefix)]


def _read(read: Callable[[], T], ended: T) -> T:
    try:
        return read()
    except (psutil.NoSuchProcess, FileNotFoundError):  # psutil itself meets a /proc directory that empties as it reads
        return ended
