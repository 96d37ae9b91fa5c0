"""Decides which of the processes that Ray's memory monitor killed took the memory."""

from __future__ import annotations

from batchray.executors.ray.internals import memory_by_worker

OUT_OF_MEMORY = "Ray's memory monitor killed it"
# A process counts as a culprit if it holds at least this share of the memory of the largest one.
_SHARE = 0.5
_LANE_TASK = "Lane.__init__"


def is_oom_culprit(name: str, n_bytes: int, report: str) -> bool:
    """Whether a process was killed for the memory that it held itself.

    `n_bytes` is the process's own count, 0 if it left none.  The monitor kills the newest processes first, until enough
    memory is free: small ones die because of a large one, which may even survive.  So this compares all the lanes and
    processes of requests that the report lists.

    Without its own count, the process had not begun, or was on a node without a lane.  Then the report's figure for
    `name` counts, an actor's id or a task's name; but Ray may run a task in a process that it started for another one.
    """
    workers = [worker for worker in memory_by_worker(report) if _is_ours(worker.task)]
    held = {worker.actor_id or worker.task: worker.n_bytes for worker in workers}
    own = n_bytes or held.get(name, 0)
    return own > 0 and own >= _SHARE * max(held.values(), default=0)


def _is_ours(task: str) -> bool:
    return task == _LANE_TASK or task.startswith("job-")
