"""Failpoints: named places in our own code at which a test can kill the process, as a power cut would.

`BATCHRAY_FAILPOINT=name` kills the process when it reaches that failpoint; `name:n` when it reaches it the n-th time.
"""

from __future__ import annotations

import functools
import os
import signal
from collections import Counter
from typing import Literal

VARIABLE = "BATCHRAY_FAILPOINT"

FailpointName = Literal[
    "before-spool",
    "after-spool",
    "piece-stored",
    "before-commit",
    "after-commit",
    "counted-ahead",
    "outcome-arrived",
    "step-committed",
    "outcome-committed",
    "job-ended",
    "failures-cleared",
    "callback-sent",
]


def failpoint(name: FailpointName) -> None:
    """Kill this process if the environment names this failpoint.

    The variable is read here, so that no caller has to know of it.
    """
    if (wanted := os.environ.get(VARIABLE)) is None:
        return
    wanted_name, _, nth = wanted.partition(":")
    if wanted_name != name:
        return
    _n_passed()[name] += 1
    if _n_passed()[name] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def _n_passed() -> Counter[str]:
    return Counter()
