"""Kills a process at one of its syncs to disk, as a power cut would; ptrace finds the syncs in unmodified code."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import subprocess
import sys
from typing import NamedTuple

# Of Linux: <linux/ptrace.h>, <asm/unistd.h>.
_TRACE_ME, _GO_TO_NEXT_CALL, _SET_OPTIONS, _CALL_INFO = 0, 24, 0x4200, 0x420E
_MARK_CALLS, _KILL_WITH_TRACER = 1, 0x100000
_ENTRY, _EXIT = 1, 2
_SYNCS = {"x86_64": {74, 75}, "aarch64": {82, 83}}  # fsync, fdatasync
_CALL_STOP = signal.SIGTRAP | 0x80
_INFO = struct.Struct("=B3xI16xQ")  # entry or exit, architecture, number of the call
_BEGIN = f"""
import ctypes, os, signal
ctypes.CDLL(None).ptrace({_TRACE_ME}, 0, None, None)
os.kill(os.getpid(), signal.SIGSTOP)
"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class Ended(NamedTuple):
    """How a process ended: its exit status (negative for a signal), and the lines that it printed."""

    status: int
    lines: list[str]


def run_until_sync(imports: str, code: str, *arguments: str, n: int) -> Ended:
    """Run Python code, and kill it after the n-th sync of its main thread; for a negative `n`, before that sync.

    Syncs of `imports`, which run first, are not counted.
    """
    command = [sys.executable, "-c", imports + _BEGIN + code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        status = _traced(process.pid, n)
        process.returncode = status  # `_traced` has waited for it
        assert process.stdout is not None
        assert process.stderr is not None
        lines, errors = process.stdout.read().splitlines(), process.stderr.read()
    assert status in (0, -signal.SIGKILL), errors
    return Ended(status, lines)


def _traced(pid: int, n: int) -> int:
    """Follow a process from system call to system call, kill it at the n-th sync, and return its exit status."""
    n_syncs, is_sync, is_first = 0, False, True
    while True:
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        passed_on = 0
        if is_first:
            _ptrace(_SET_OPTIONS, pid, 0, _MARK_CALLS | _KILL_WITH_TRACER)
            is_first = False
        elif os.WSTOPSIG(status) == _CALL_STOP:
            place, number = _call_of(pid)
            if place == _ENTRY:
                is_sync = number in _SYNCS[platform.machine()]
                n_syncs += is_sync
            if is_sync and n_syncs == abs(n) and place == (_ENTRY if n < 0 else _EXIT):
                os.kill(pid, signal.SIGKILL)
                continue
        else:
            passed_on = os.WSTOPSIG(status)
        _ptrace(_GO_TO_NEXT_CALL, pid, 0, passed_on)


def _call_of(pid: int) -> tuple[int, int]:
    """Return whether a stopped process enters or leaves a system call, and the number of the call it enters."""
    info = ctypes.create_string_buffer(_INFO.size)
    _ptrace(_CALL_INFO, pid, _INFO.size, ctypes.addressof(info))
    place, _, number = _INFO.unpack(info.raw)
    return place, number


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x}) of process {pid}")
