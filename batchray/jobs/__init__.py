"""Jobs: run a stored batch to its end, with all attempts, limits, deadlines and control requests.

Start reading at `driver.run_job`: it reads the items without an outcome, keeps the window full, records each outcome
once, and ends the job.  From there:

- `item_runner`: the attempts of one item; `attempt_policy`: whether a crashed one is retried (a pure function)
- `window`: at most N items in flight; `slots`: limits per provider and stateful agent, over all jobs (both pure)
- `deadlines`: deadlines that pause while the store is unavailable
- `group_commit`: attempts, checkpoints and outcomes of all items in common transactions
- `control`: the requests to a running job and the places that keep them; `steering`: how they are carried out
- `running`: a running job's state; `in_flight`, `timing`, `endings`: parts of it; `idle`: jobs that no process runs
- `runtime`: the event loop, stores and executors that all jobs of a process share; `local_run`: a job that this process
  runs; `handle`: the public `Job`, for a job that any process runs
- `start`: a job accepted, continued or retried in this process; `states`: the word for a job's state

Invariants:

- Counted before spawned: an attempt is committed to the store before its remote call.  A crash of the driver may hide
  that a first attempt, which was counted ahead, has begun; it hides no later one.
- A slot is free when its outcome has arrived; that of a stateful agent when it is committed.
- Committed before told: an outcome is counted and shown only after its commit, and the store accepts one for each item.
- Fenced: every write carries the epoch of the job's lease.  A process that has lost the lease can write nothing, and
  stops the job with LeaseLostError.
- Nothing that matters is kept in Ray: this room imports no Ray, and an executor may disappear at any time.
- A job that stops for any reason other than its end is left unfinished, and continues from the store.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """This package: `batchray.jobs()` lists the jobs of a store, although `batchray.jobs` is the room of their code."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module("batchray.api").jobs(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
