"""Settings of this process's Python interpreter for hundreds of concurrent requests, and its free memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

# A thread waits Python's default of 5 ms for the interpreter while another thread computes.  Calls and results pass one
# by one between our event loop and Ray's threads, and rows to SQLite: with hundreds at once the waits become seconds.
_SWITCH_INTERVAL_S = 0.0005
# By default Python looks for reference cycles every 700 allocations.  Each time it visits all requests in flight and
# finds nothing, because they create no cycles.  Code of tools and callables may, so collection is not switched off.
_GC_THRESHOLDS = (20_000, 5, 5)


def tune_interpreter() -> None:
    """Switch threads more often and collect garbage less often; values that are further in that direction stay."""
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
    if 0 < gc.get_threshold()[0] < _GC_THRESHOLDS[0]:  # 0 means that collection is off
        gc.set_threshold(*_GC_THRESHOLDS)


def return_free_memory() -> None:
    """Return to the system the memory that is free, after a collection of young reference cycles.

    Among those are closed connections, for example: the thresholds above let them live long.
    """
    gc.collect(1)
    trim_heap()


def trim_heap() -> None:
    """Return to the system the memory that the C library keeps for later allocations; only glibc can do that.

    It keeps some for each thread.  Without this a process with several threads that exchange buffers grows for hours.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
