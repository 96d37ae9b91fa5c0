"""Where attempts run: on a Ray cluster, or in this process.

Owns the interface between the driver and whatever runs a request.  `base` defines it, `local` runs attempts on the
driver's own event loop, and `ray/` runs them on a cluster.  Only `ray/` imports ray; this package does not.

Invariants: a request and its report cross the interface as bytes; a failed request is a report, not an exception; an
executor never counts or repeats attempts, because the store does.

Start reading at `base.Executor`, then `ray/executor.py`.
"""

import warnings

from batchray.executors.base import AttemptSpec, ControlChannel, Executor, ManagedExecutor
from batchray.executors.blocking import BlockingBoard
from batchray.executors.local import LocalExecutor
from batchray.executors.provider_board import ProviderBoard, ProviderState

__all__ = [
    "AttemptSpec",
    "BlockingBoard",
    "ControlChannel",
    "Executor",
    "LocalExecutor",
    "ManagedExecutor",
    "ProviderBoard",
    "ProviderState",
]

# In a notebook, the tqdm that ray imports would say that ipywidgets is missing, which nothing here uses.  Ray is
# imported on another thread; a filter that is added there may be lost to a `catch_warnings` of the main thread.
warnings.filterwarnings("ignore", "IProgress not found")
