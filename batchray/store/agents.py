"""Agents that were made over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.store.database import Database
from batchray.store.jobs import between
from batchray.store.records import Order, StoredAgent, utc_now
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

    def agents(
        self,
        user_id: str,
        *,
        order: Order = "asc",
        after: str | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> list[StoredAgent]:
        """Return a user's agents in the order of their creation; `after` and `before` are ids of agents of theirs."""
        query = sa.select(*_COLUMNS).where(agents.c.user_id == user_id).limit(limit)
        query = query.order_by(agents.c.agent if order == "asc" else agents.c.agent.desc())
        with self._reading() as connection:
            keys = {
                agent_id: connection.execute(sa.select(agents.c.agent).where(agents.c.id == agent_id)).scalar()
                for agent_id in (after, before)
                if agent_id is not None
            }
            query = between(query, agents.c.agent, order, keys.get(after or ""), keys.get(before or ""))
            return [_stored_agent(*row) for row in connection.execute(query)]


def _stored_agent(agent_id: str, user_id: str, created_at: str, updated_at: str, spec: bytes) -> StoredAgent:
    return StoredAgent(agent_id, user_id, created_at, updated_at, orjson.loads(spec))
