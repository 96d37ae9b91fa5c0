"""The agents table: agents made over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.store.database import Database
from batchray.store.records import StoredAgent, utc_now
from batchray.store.tables import agents

_COLUMNS = (agents.c.id, agents.c.user_id, agents.c.created_at, agents.c.updated_at, agents.c.spec)


class Agents:
    """Agents made over HTTP.  Each belongs to one user."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, agent_id: str, user_id: str, spec: Mapping[str, Any]) -> StoredAgent:
        """Store a new agent and return it.  It is on disk when this returns."""
        now = utc_now()
        values = {"id": agent_id, "user_id": user_id, "created_at": now, "updated_at": now}
        with self._database.transaction() as connection:
            connection.execute(sa.insert(agents).values(**values, spec=orjson.dumps(spec)))
        return StoredAgent(**values, spec=dict(spec))

    def update(self, agent_id: str, user_id: str, spec: Mapping[str, Any]) -> bool:
        """Replace an agent's settings; False if the user has no such agent."""
        statement = sa.update(agents).where(agents.c.id == agent_id, agents.c.user_id == user_id)
        with self._database.transaction() as connection:
            changed = connection.execute(statement.values(spec=orjson.dumps(spec), updated_at=utc_now()))
        return changed.rowcount > 0

    def delete(self, agent_id: str, user_id: str) -> bool:
        """Delete an agent.  Jobs that name it keep their own copy.  False if the user has no such agent."""
        with self._database.transaction() as connection:
            deleted = connection.execute(sa.delete(agents).where(agents.c.id == agent_id, agents.c.user_id == user_id))
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

    def ids(self, user_id: str) -> list[str]:
        """Return the ids of a user's agents, oldest first."""
        query = sa.select(agents.c.id).where(agents.c.user_id == user_id).order_by(agents.c.agent)
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())


def _stored_agent(agent_id: str, user_id: str, created_at: str, updated_at: str, spec: bytes) -> StoredAgent:
    return StoredAgent(agent_id, user_id, created_at, updated_at, orjson.loads(spec))
