"""The turn of a stateful agent: of all processes that share a database, one at a time runs a request to it.

A turn belongs to an item in a run of a job, and is over when the item's outcome is recorded, or when that run may not
write any more: its lease has expired, or another process has taken it.  A job passes it on to its next item that runs,
because the outcome of the earlier one may be held back, and recorded meanwhile.

A process that takes a turn from an expired lease ends that lease, so that a leader that was only slow cannot add to the
conversation later.

While a job has the turn, one other may ask to be the next.  Without that, a process with many requests to the agent
would take turn after turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from batchray.store.database import Database
from batchray.store.records import JobRecord, LedJob
from batchray.store.tables import agent_turns, leases

_NEXT_S = 5.0
"""How long a job that waits for a turn is the next one after its last question; longer than between two questions."""


def take_turn(database: Database, connection: sa.Connection, job: LedJob, index: int, agent_id: str) -> bool:
    """Take the turn of an agent for an item in this run of a job, and return whether that is possible now.

    If not, the job is the next one unless another is.  A data directory has one process, which needs no turns.
    """
    if not database.is_shared:
        return True
    this = sa.and_(agent_turns.c.user_id == job.user_id, agent_turns.c.agent_id == agent_id)
    # One statement that makes the row or locks it: between two, the agent might be deleted.
    new = database.backend.insert(agent_turns).values(user_id=job.user_id, agent_id=agent_id)
    unchanged = {"next_until": agent_turns.c.next_until}
    locking = new.on_conflict_do_update(index_elements=("user_id", "agent_id"), set_=unchanged)
    turn = connection.execute(locking.returning(*agent_turns.c)).one()
    now = database.backend.now(connection)
    is_next_free = turn.next_job in (None, job.key) or turn.next_until <= now
    if turn.job == job.key or (is_next_free and _is_over(connection, turn, now)):
        values: dict[str, Any] = {"job": job.key, "idx": index, "epoch": job.epoch}
        if is_next_free:
            values["next_job"] = None
        connection.execute(sa.update(agent_turns).where(this).values(**values))
        return True
    if is_next_free:
        connection.execute(sa.update(agent_turns).where(this).values(next_job=job.key, next_until=now + _NEXT_S))
    return False


def end_turns(connection: sa.Connection, job: JobRecord, items: Iterable[tuple[int, str]] | None = None) -> None:
    """End the turns of a job's items, given with their agents; None: of all of them.

    It comes before other rows of an agent are changed: `take_turn` does, and the other order could deadlock.
    """
    held = agent_turns.c.job == job.key
    if items is not None:
        if not (ended := sorted(items)):
            return
        of_items = sa.tuple_(agent_turns.c.idx, agent_turns.c.agent_id).in_(ended)
        held = sa.and_(held, agent_turns.c.user_id == job.user_id, of_items)
    connection.execute(sa.update(agent_turns).where(held).values(job=None))


def _is_over(connection: sa.Connection, turn: sa.Row[Any], now: float) -> bool:
    """Return whether no run has the turn; ends the lease of one that has it and is silent."""
    if turn.job is None:
        return True
    of_run = sa.and_(leases.c.job == turn.job, leases.c.epoch == turn.epoch)
    held = connection.execute(sa.select(leases.c.until).where(of_run)).scalar()
    if held is None:  # another process has taken the job, or it is deleted
        return True
    if held > now:
        return False
    # Without waiting for the lease: its leader may have locked it, and wait for the turn.
    query = sa.select(leases.c.job).where(of_run, leases.c.until <= now).with_for_update(skip_locked=True)
    if connection.execute(query).first() is None:
        return False
    connection.execute(sa.update(leases).where(of_run).values(epoch=leases.c.epoch + 1, leader="", until=0.0))
    return True
