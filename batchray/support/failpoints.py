"""Named places in our own code where a test may let the process die, as a power cut would.

`BATCHRAY_CRASH_AT=name` or `name:n` kills the process where it comes by that place, for the n-th time.
"""

from __future__ import annotations

import functools
import os
import signal
from collections import Counter
from typing import Literal

VARIABLE = "BATCHRAY_CRASH_AT"

Place = Literal[
    "before-spool",
    "after-spool",
    "before-commit",
    "after-commit",
    "step-committed",
    "outcome-committed",
    "job-ended",
    "callback-sent",
]


def failpoint(place: Place) -> None:
    """Die here, where the environment says so; read there, because no caller of this should know of it."""
    if (wanted := os.environ.get(VARIABLE)) is None:
        return
    name, _, nth = wanted.partition(":")
    if name != place:
        return
    _passed()[place] += 1
    if _passed()[place] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def _passed() -> Counter[str]:
    return Counter()
