"""How this process's interpreter is set for hundreds of requests at once."""

from __future__ import annotations

import gc
import sys

# Python's own 5 ms is what a thread waits for the interpreter while another one computes.  Calls and results pass one
# by one between our event loop and Ray's threads, and rows to SQLite: with hundreds at once the waits become seconds.
_SWITCH_INTERVAL_S = 0.0005
# Python looks for cycles every 700 objects, and walks through all requests in flight to find none: they leave no cycles
# of their own.  Code of tools and callables may, so it is not switched off.
_GC_THRESHOLDS = (20_000, 5, 5)


def tune_interpreter() -> None:
    """Let threads take turns often, and look for cycles seldom; an interpreter that does so already is left alone."""
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
    if 0 < gc.get_threshold()[0] < _GC_THRESHOLDS[0]:  # 0 is off
        gc.set_threshold(*_GC_THRESHOLDS)
