"""The tables of blocks: memory blocks made over HTTP, and the agents that have them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa

from batchray.errors import BlockConflictError, UnknownAgentError, UnknownBlockError
from batchray.schema import new_id
from batchray.store.agent_records import NewBlock, StoredBlock
from batchray.store.database import CHUNK, Database, chunks
from batchray.store.memory import BLOCK_COLUMNS, load_blocks, stored_block
from batchray.store.queries import between
from batchray.store.records import SortOrder, utc_now
from batchray.store.tables import agent_blocks, agents, blocks

MAX_BLOCKS = 100
"""How many blocks an agent may have: all of them are in its prompt."""

_OWNED_BY = "made_for"
"""The key of a block's `spec` with the id of the agent that it was created with."""

_N_AGENTS = (
    sa.select(sa.func.count())
    .select_from(agent_blocks)
    .where(agent_blocks.c.block_id == blocks.c.id)
    .scalar_subquery()
    .label("n_agents")
)


class ListedBlock(NamedTuple):
    """A block in a list: its position, and how many agents have it."""

    position: int
    block: StoredBlock
    n_agents: int


class Blocks:
    """Memory blocks made over HTTP.  Each belongs to one user, and any of the user's agents may have it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, user_id: str, new: NewBlock) -> StoredBlock:
        """Store a new block and return it.  It is on disk when this returns."""
        with self._database.transaction() as connection:
            [block] = _insert(connection, user_id, [new])
        return block

    def find(self, block_id: str, user_id: str) -> StoredBlock:
        """Return a user's block.  Raises UnknownBlockError."""
        with self._database.reading() as connection:
            return _found(load_blocks(connection, user_id, [block_id]), block_id)

    def change(self, block_id: str, user_id: str, change: Callable[[StoredBlock], NewBlock]) -> StoredBlock:
        """Replace what a block holds by what `change` returns for it; nothing else changes the block meanwhile.

        Raises UnknownBlockError, BlockConflictError if an agent that has the block has another one of its new label,
        and what `change` raises.
        """
        locks_agents = False  # only a new label needs that, and nothing else changes then which agents have the block
        while (changed := self._change(block_id, user_id, change, locks_agents=locks_agents)) is None:
            locks_agents = True
        return changed

    def _change(
        self, block_id: str, user_id: str, change: Callable[[StoredBlock], NewBlock], *, locks_agents: bool
    ) -> StoredBlock | None:
        """Do what `change` does; None if the label changes and an agent that has the block is not locked."""
        with self._database.transaction() as connection:
            owners = _agents_of(connection, block_id) if locks_agents else []
            before = _locked(connection, user_id, block_id, owners)
            new = change(before)
            if new.label != before.label and not set(owners).issuperset(_agents_of(connection, block_id)):
                return None
            values = {"label": new.label, "value": new.value.encode(), "spec": orjson.dumps(new.spec)}
            connection.execute(sa.update(blocks).where(blocks.c.id == block_id).values(**values, updated_at=utc_now()))
            if new.label != before.label:
                for agent_id in owners:
                    _check_labels(connection, agent_id)
            return load_blocks(connection, user_id, [block_id])[block_id]

    def delete(self, block_id: str, user_id: str) -> None:
        """Delete a block, and detach it from all agents.  Raises UnknownBlockError."""
        with self._database.transaction() as connection:
            _locked(connection, user_id, block_id, _agents_of(connection, block_id))
            connection.execute(sa.delete(agent_blocks).where(agent_blocks.c.block_id == block_id))
            connection.execute(sa.delete(blocks).where(blocks.c.id == block_id))

    def position(self, block_id: str, user_id: str) -> int | None:
        """Return the position of a block in the list of its user's blocks, or None."""
        query = sa.select(blocks.c.block).where(blocks.c.id == block_id, blocks.c.user_id == user_id)
        with self._database.reading() as connection:
            return connection.execute(query).scalar()

    def listed(
        self, user_id: str, order: SortOrder, after: int | None = None, before: int | None = None
    ) -> Iterator[ListedBlock]:
        """Yield a user's blocks by the time of their creation, between two positions, in pages."""
        while page := self._page(user_id, order, after, before):
            yield from page
            after = page[-1].position

    def _page(self, user_id: str, order: SortOrder, after: int | None, before: int | None) -> list[ListedBlock]:
        query: sa.Select[Any] = sa.select(*BLOCK_COLUMNS, blocks.c.block, _N_AGENTS)
        query = query.where(blocks.c.user_id == user_id)
        query = between(query, blocks.c.block, order, after, before)
        query = query.order_by(blocks.c.block.desc() if order == "desc" else blocks.c.block).limit(CHUNK)
        return self._database.page(query, _listed, sa.func.length(blocks.c.value))

    def of_agent(self, agent_id: str) -> list[StoredBlock]:
        """Return an agent's blocks, in the order in which they were attached."""
        return self.of_agents([agent_id]).get(agent_id, [])

    def of_agents(self, agent_ids: Iterable[str]) -> dict[str, list[StoredBlock]]:
        """Return the blocks of several agents by agent; one without blocks is left out."""
        found: dict[str, list[StoredBlock]] = {}
        with self._database.reading() as connection:
            for chunk in chunks(agent_ids):
                query = sa.select(*BLOCK_COLUMNS, agent_blocks.c.agent_id)
                query = query.join(agent_blocks, agent_blocks.c.block_id == blocks.c.id)
                query = query.where(agent_blocks.c.agent_id.in_(chunk)).order_by(agent_blocks.c.seq)
                for row in connection.execute(query):
                    found.setdefault(row.agent_id, []).append(stored_block(row))
        return found

    def agents_of(self, block_id: str) -> list[str]:
        """Return the ids of the agents that have a block, in the order in which it was attached."""
        with self._database.reading() as connection:
            return _agents_of(connection, block_id)

    def attach(self, agent_id: str, user_id: str, block_id: str) -> None:
        """Give a block to an agent, which may have it already.

        Raises UnknownAgentError, UnknownBlockError, and BlockConflictError if the agent has another block of the same
        label, or too many.
        """
        with self._database.transaction() as connection:
            _lock_agent(connection, user_id, agent_id)
            attach_blocks(connection, user_id, agent_id, [block_id])

    def detach(self, agent_id: str, user_id: str, block_id: str) -> bool:
        """Take a block from an agent; False if it did not have it.  Raises UnknownAgentError."""
        with self._database.transaction() as connection:
            _lock_agent(connection, user_id, agent_id)
            here = sa.and_(agent_blocks.c.agent_id == agent_id, agent_blocks.c.block_id == block_id)
            return connection.execute(sa.delete(agent_blocks).where(here)).rowcount > 0


def create_blocks(connection: sa.Connection, user_id: str, agent_id: str, new: Sequence[NewBlock]) -> list[str]:
    """Insert the blocks that an agent is created with, and return their ids."""
    owned = [NewBlock(each.label, each.value, {**each.spec, _OWNED_BY: agent_id}) for each in new]
    return [block.id for block in _insert(connection, user_id, owned)]


def attach_blocks(connection: sa.Connection, user_id: str, agent_id: str, block_ids: Collection[str]) -> None:
    """Give blocks to an agent.  Raises UnknownBlockError and BlockConflictError."""
    found = load_blocks(connection, user_id, block_ids, is_locked=True)
    for block_id in block_ids:
        _found(found, block_id)
    present = set(_ids_of(connection, agent_id))
    rows = [{"agent_id": agent_id, "block_id": each} for each in dict.fromkeys(block_ids) if each not in present]
    if len(present) + len(rows) > MAX_BLOCKS:
        raise BlockConflictError(f"agent {agent_id} cannot have more than {MAX_BLOCKS} blocks; detach one first")
    if rows:
        connection.execute(sa.insert(agent_blocks), rows)
        _check_labels(connection, agent_id)


def replace_blocks(connection: sa.Connection, user_id: str, agent_id: str, block_ids: Collection[str]) -> None:
    """Give an agent exactly these blocks.  Raises as `attach_blocks` does."""
    connection.execute(sa.delete(agent_blocks).where(agent_blocks.c.agent_id == agent_id))
    attach_blocks(connection, user_id, agent_id, block_ids)


def detach_all(connection: sa.Connection, user_id: str, agent_id: str) -> None:
    """Detach an agent's blocks because it is deleted; those that it was created with go too if no other has them."""
    ids = _ids_of(connection, agent_id)
    connection.execute(sa.delete(agent_blocks).where(agent_blocks.c.agent_id == agent_id))
    for block in load_blocks(connection, user_id, ids, is_locked=True).values():
        if block.spec.get(_OWNED_BY) == agent_id and not _agents_of(connection, block.id):
            connection.execute(sa.delete(blocks).where(blocks.c.id == block.id))


def _insert(connection: sa.Connection, user_id: str, new: Sequence[NewBlock]) -> list[StoredBlock]:
    now = utc_now()
    created = [StoredBlock(new_id("block"), user_id, now, now, each.label, each.value, dict(each.spec)) for each in new]
    rows = [
        {
            **{name: getattr(block, name) for name in ("id", "user_id", "created_at", "updated_at", "label")},
            "value": block.value.encode(),
            "spec": orjson.dumps(block.spec),
        }
        for block in created
    ]
    if rows:
        connection.execute(sa.insert(blocks), rows)
    return created


def _listed(*row: Any) -> ListedBlock:
    return ListedBlock(row[-2], stored_block(row), row[-1])


def _found(blocks_by_id: dict[str, StoredBlock], block_id: str) -> StoredBlock:
    if block_id not in blocks_by_id:
        raise UnknownBlockError(block_id)
    return blocks_by_id[block_id]


def _locked(connection: sa.Connection, user_id: str, block_id: str, owners: Collection[str]) -> StoredBlock:
    """Lock agents, then a block, and return the block: in the other order, an attach could deadlock with this."""
    _lock_agents(connection, user_id, owners)
    return _found(load_blocks(connection, user_id, [block_id], is_locked=True), block_id)


def _ids_of(connection: sa.Connection, agent_id: str) -> list[str]:
    query = sa.select(agent_blocks.c.block_id).where(agent_blocks.c.agent_id == agent_id)
    return list(connection.execute(query).scalars())


def _agents_of(connection: sa.Connection, block_id: str) -> list[str]:
    query = sa.select(agent_blocks.c.agent_id).where(agent_blocks.c.block_id == block_id)
    return list(connection.execute(query.order_by(agent_blocks.c.seq)).scalars())


def _lock_agent(connection: sa.Connection, user_id: str, agent_id: str) -> None:
    if not _lock_agents(connection, user_id, [agent_id]):
        raise UnknownAgentError(f"Agent with ID {agent_id} not found")


def _lock_agents(connection: sa.Connection, user_id: str, agent_ids: Collection[str]) -> list[str]:
    """Return which of these agents exist; no other transaction can change which blocks they have meanwhile."""
    found: list[str] = []
    for chunk in chunks(sorted(agent_ids)):
        query = sa.select(agents.c.id).where(agents.c.user_id == user_id, agents.c.id.in_(chunk)).order_by(agents.c.id)
        found += connection.execute(query.with_for_update()).scalars()
    return found


def _check_labels(connection: sa.Connection, agent_id: str) -> None:
    query = sa.select(blocks.c.label).join(agent_blocks, agent_blocks.c.block_id == blocks.c.id)
    query = query.where(agent_blocks.c.agent_id == agent_id).group_by(blocks.c.label).having(sa.func.count() > 1)
    if (label := connection.execute(query).scalar()) is not None:
        raise BlockConflictError(f"agent {agent_id} cannot have two blocks of the label {label!r}; detach one first")
