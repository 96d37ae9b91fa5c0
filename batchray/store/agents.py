"""The agents table: agents made over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa

from batchray.store.agent_records import LastRun, NewBlock, StoredAgent
from batchray.store.blocks import attach_blocks, create_blocks, detach_all, replace_blocks
from batchray.store.database import Database
from batchray.store.records import utc_now
from batchray.store.tables import agent_runs, agents

T = TypeVar("T")

_PAGE = 500
_COLUMNS = (agents.c.id, agents.c.user_id, agents.c.created_at, agents.c.updated_at, agents.c.spec)


class Agents:
    """Agents made over HTTP.  Each belongs to one user."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        agent_id: str,
        user_id: str,
        spec: Mapping[str, Any],
        new_blocks: Sequence[NewBlock] = (),
        block_ids: Sequence[str] = (),
    ) -> StoredAgent:
        """Store a new agent with its memory blocks, new ones and existing ones, and return it.

        It is on disk when this returns.  Raises UnknownBlockError, and BlockConflictError if two have the same label.
        """
        now = utc_now()
        values = {"id": agent_id, "user_id": user_id, "created_at": now, "updated_at": now}
        with self._database.transaction() as connection:
            connection.execute(sa.insert(agents).values(**values, **_spec_values(agent_id, spec)))
            created = create_blocks(connection, user_id, agent_id, new_blocks)
            attach_blocks(connection, user_id, agent_id, [*created, *block_ids])
        return StoredAgent(**values, spec=dict(spec))

    def update(self, before: StoredAgent, spec: Mapping[str, Any], block_ids: Sequence[str] | None = None) -> bool:
        """Replace an agent's settings, and its memory blocks unless `block_ids` is None.

        False if its settings have changed since `before` was read, or it was deleted.  Raises as `create` does.
        """
        here = (agents.c.id == before.id, agents.c.user_id == before.user_id, agents.c.updated_at == before.updated_at)
        statement = sa.update(agents).where(*here)
        with self._database.transaction() as connection:
            changed = connection.execute(statement.values(**_spec_values(before.id, spec), updated_at=utc_now()))
            if changed.rowcount and block_ids is not None:
                replace_blocks(connection, before.user_id, before.id, block_ids)
        return changed.rowcount > 0

    def delete(self, agent_id: str, user_id: str) -> bool:
        """Delete an agent.  Jobs that name it keep their own copy.  False if the user has no such agent.

        The blocks that it was created with go too, unless another agent has them.
        """
        with self._database.transaction() as connection:
            deleted = connection.execute(sa.delete(agents).where(agents.c.id == agent_id, agents.c.user_id == user_id))
            if deleted.rowcount:
                detach_all(connection, user_id, agent_id)
                here = (agent_runs.c.user_id == user_id, agent_runs.c.agent_id == agent_id)
                connection.execute(sa.delete(agent_runs).where(*here))
        return deleted.rowcount > 0

    def find(self, agent_id: str, user_id: str) -> StoredAgent | None:
        """Return a user's agent, or None."""
        query = sa.select(*_COLUMNS).where(agents.c.id == agent_id, agents.c.user_id == user_id)
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return _stored_agent(*row) if row else None

    def find_of_any_user(self, agent_id: str) -> StoredAgent | None:
        """Return any user's agent, or None."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(*_COLUMNS).where(agents.c.id == agent_id)).first()
        return _stored_agent(*row) if row else None

    def ids(self, user_id: str, name: str | None = None) -> list[str]:
        """Return the ids of a user's agents, oldest first; only of those with this name, unless it is None."""
        query = sa.select(agents.c.id).where(agents.c.user_id == user_id).order_by(agents.c.agent)
        if name is not None:
            query = query.where(agents.c.name == name)
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    def creation_times(self, user_id: str) -> dict[str, str]:
        """Return when each of a user's agents was created, by its id, oldest first."""
        query = sa.select(agents.c.id, agents.c.created_at).where(agents.c.user_id == user_id).order_by(agents.c.agent)
        with self._database.reading() as connection:
            return {row.id: row.created_at for row in connection.execute(query)}

    def views(self, user_id: str, view: Callable[[str, Mapping[str, Any]], T], name: str | None = None) -> list[T]:
        """Return `view` of the id and the spec of each of a user's agents, oldest first; `name` as in `ids`."""
        query = sa.select(agents.c.id, agents.c.spec).where(agents.c.user_id == user_id).order_by(agents.c.agent)
        if name is not None:
            query = query.where(agents.c.name == name)
        with self._database.reading() as connection:
            return [view(row.id, orjson.loads(row.spec)) for row in connection.execute(query).yield_per(_PAGE)]

    def last_runs(self, user_id: str, agent_id: str | None = None) -> dict[str, LastRun]:
        """Return the last runs of a user's agents, or of one agent, by its id; those that never ran are left out."""
        query = sa.select(agent_runs).where(agent_runs.c.user_id == user_id)
        if agent_id is not None:
            query = query.where(agent_runs.c.agent_id == agent_id)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return {row.agent_id: LastRun(row.finished_at, row.stop_reason, row.duration_ns) for row in rows}


def _spec_values(agent_id: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"spec": orjson.dumps(spec), "name": spec.get("given", {}).get("name") or agent_id}


def _stored_agent(agent_id: str, user_id: str, created_at: str, updated_at: str, spec: bytes) -> StoredAgent:
    return StoredAgent(agent_id, user_id, created_at, updated_at, orjson.loads(spec))
