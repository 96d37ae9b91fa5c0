"""What Ray's memory monitor reports of the processes that it killed: who of them took the memory."""

from __future__ import annotations

import re

OUT_OF_MEMORY = "Ray's memory monitor killed it"
# A process takes the memory that holds at least this share of what the largest one does.
_SHARE = 0.5
# A worker in a report: a lane by the id of its actor, a process of its own by the name of the task it was started for.
_WORKER = re.compile(r"\((?:Task|Actor\((\w+)\)): .*?task name=(\S*?),.*?actual memory used=([0-9.]+)GB")
_LANE_TASK = "Lane.__init__"


def is_oom_culprit(name: str, n_bytes: int, report: str) -> bool:
    """Return whether a process was killed for what it held itself: `n_bytes` by its own account, 0 where it left none.

    The monitor kills the newest processes first, until enough is free: small ones die for a large one, which may even
    live on.  So all are compared that it looked at, of lanes and of processes such as this one.

    Without an account the process had not begun, or was on a node without a lane.  Then what the report says of its
    name counts, an actor's id or a task's name; but Ray may run a task in a process that it started for another one.
    """
    held = {actor_id or task: float(gb) * 2**30 for actor_id, task, gb in _WORKER.findall(report) if _is_ours(task)}
    own = n_bytes or held.get(name, 0)
    return own > 0 and own >= _SHARE * max(held.values(), default=0)


def _is_ours(task: str) -> bool:
    return task == _LANE_TASK or task.startswith("job-")
