"""What Ray's memory monitor reports of the processes that it killed: who of them took the memory."""

from __future__ import annotations

import re

OUT_OF_MEMORY = "Ray's memory monitor killed it"
# A process takes the memory that holds at least this share of what the largest one does.
_SHARE = 0.5
# A worker in a report: a lane by the id of its actor, a process of its own by the name of its task.
_WORKER = re.compile(r"\((?:Task|Actor\((\w+)\)): .*?task name=(\S*?),.*?actual memory used=([0-9.]+)GB")
_LANE_TASK = "Lane.__init__"


def took_the_memory(name: str, report: str) -> bool:
    """Return whether a process was killed for what it held itself, by its actor's id or its task's name.

    The monitor kills the newest processes first, until enough is free: small ones die for a large one, which may even
    live on.  So all are compared that it looked at, of lanes and of processes such as this one.  True where nothing is
    known of it.
    """
    held = {actor_id or task: float(gb) for actor_id, task, gb in _WORKER.findall(report) if _is_ours(task)}
    return name not in held or held[name] >= _SHARE * max(held.values())


def _is_ours(task: str) -> bool:
    return task == _LANE_TASK or task.startswith("job-")
