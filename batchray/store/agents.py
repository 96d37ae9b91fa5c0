"""Agents that were made over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.store.database import Database
from batchray.store.records import StoredAgent, utc_now
from batchray.store.tables import agents

_COLUMNS = (agents.c.id, agents.c.user_id, agents.c.created_at, agents.c.updated_at, agents.c.spec)


class Agents(Database):
    """What the store knows of agents; each belongs to one user."""

    def create_agent(self, agent_id: str, user_id: str, spec: Mapping[str, Any]) -> StoredAgent:
        """Keep a new agent and return it; on disk when this returns."""
        now = utc_now()
        values = {"id": agent_id, "user_id": user_id, "created_at": now, "updated_at": now}
        with self._transaction() as connection:
            connection.execute(sa.insert(agents).values(**values, spec=orjson.dumps(spec)))
        return StoredAgent(**values, spec=dict(spec))

    def update_agent(self, agent_id: str, user_id: str, spec: Mapping[str, Any]) -> bool:
        """Replace an agent's settings; False where the user has no such agent."""
        statement = sa.update(agents).where(agents.c.id == agent_id, agents.c.user_id == user_id)
        with self._transaction() as connection:
            changed = connection.execute(statement.values(spec=orjson.dumps(spec), updated_at=utc_now()))
        return changed.rowcount > 0

    def delete_agent(self, agent_id: str, user_id: str) -> bool:
        """Forget an agent; jobs that named it keep their own copy.  False where the user has no such agent."""
        with self._transaction() as connection:
            deleted = connection.execute(sa.delete(agents).where(agents.c.id == agent_id, agents.c.user_id == user_id))
        return deleted.rowcount > 0

    def agent(self, agent_id: str, user_id: str) -> StoredAgent | None:
        """Return a user's agent."""
        query = sa.select(*_COLUMNS).where(agents.c.id == agent_id, agents.c.user_id == user_id)
        with self._reading() as connection:
            row = connection.execute(query).first()
        return _stored_agent(*row) if row else None

    def agent_of_any(self, agent_id: str) -> StoredAgent | None:
        """Return an agent, whoever's it is."""
        with self._reading() as connection:
            row = connection.execute(sa.select(*_COLUMNS).where(agents.c.id == agent_id)).first()
        return _stored_agent(*row) if row else None

    def agent_ids(self, user_id: str) -> list[str]:
        """Return the ids of a user's agents, the oldest first."""
        query = sa.select(agents.c.id).where(agents.c.user_id == user_id).order_by(agents.c.agent)
        with self._reading() as connection:
            return list(connection.execute(query).scalars())


def _stored_agent(agent_id: str, user_id: str, created_at: str, updated_at: str, spec: bytes) -> StoredAgent:
    return StoredAgent(agent_id, user_id, created_at, updated_at, orjson.loads(spec))
