"""Agents' memory as runs read and edit it: stored blocks, and the edited blocks of agents' settings.

A run edits a copy.  When its outcome is recorded, its edits are merged into what the blocks hold by then, so that
neither they nor the edits of a person or of another run meanwhile are lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.store.agent_records import ConversationUpdate, MemoryEdit, StoredBlock
from batchray.store.database import chunks
from batchray.store.records import JobRecord, utc_now
from batchray.store.tables import agent_blocks, blocks, memory_blocks
from batchray.support.text_merge import merge_texts

logger = logging.getLogger(__name__)

BLOCK_COLUMNS = (
    *(blocks.c.id, blocks.c.user_id, blocks.c.created_at, blocks.c.updated_at),
    *(blocks.c.label, blocks.c.value, blocks.c.spec),
)


def stored_block(row: Sequence[Any]) -> StoredBlock:
    """Return a block from its row of `BLOCK_COLUMNS`."""
    block_id, user_id, created_at, updated_at, label, value, spec = row[: len(BLOCK_COLUMNS)]
    return StoredBlock(block_id, user_id, created_at, updated_at, label, value.decode(), orjson.loads(spec))


def load_blocks(
    connection: sa.Connection, user_id: str, block_ids: Iterable[str], *, is_locked: bool = False
) -> dict[str, StoredBlock]:
    """Return those of a user's blocks that exist, by id.  If `is_locked`, no other transaction can change them."""
    found: dict[str, StoredBlock] = {}
    for chunk in chunks(sorted(set(block_ids))):  # in one order, so that two transactions never wait for each other
        query = sa.select(*BLOCK_COLUMNS).where(blocks.c.user_id == user_id, blocks.c.id.in_(chunk))
        query = query.order_by(blocks.c.id)
        rows = connection.execute(query.with_for_update() if is_locked else query)
        found.update((row.id, stored_block(row)) for row in rows)
    return found


def load_memory(connection: sa.Connection, user_id: str, agent_id: str) -> dict[str, str]:
    """Return an agent's edited memory blocks, by label.

    A job of version 4 knows the blocks of an agent made over HTTP by their labels only; they are stored blocks now.
    """
    own = sa.select(memory_blocks.c.label, memory_blocks.c.value)
    own = own.where(memory_blocks.c.user_id == user_id, memory_blocks.c.agent_id == agent_id)
    attached = sa.select(blocks.c.label, blocks.c.value).join(agent_blocks, agent_blocks.c.block_id == blocks.c.id)
    attached = attached.where(blocks.c.user_id == user_id, agent_blocks.c.agent_id == agent_id)
    return {label: value.decode() for label, value in connection.execute(own.union_all(attached))}


def set_memory(connection: sa.Connection, user_id: str, agent_id: str, label: str, value: str) -> None:
    """Set the value of a block of an agent's settings."""
    here = _of_settings(user_id, agent_id, label)
    if not connection.execute(sa.update(memory_blocks).where(here).values(value=value.encode())).rowcount:
        row = {"user_id": user_id, "agent_id": agent_id, "label": label, "value": value.encode()}
        connection.execute(sa.insert(memory_blocks).values(**row))


def apply_memory_edits(connection: sa.Connection, job: JobRecord, updates: Sequence[ConversationUpdate]) -> None:
    """Write the edits of runs that have succeeded, in the transaction that records their outcomes."""
    edits = [
        (update.agent_id, edit)
        for update in updates
        for edit in update.edits
        if edit.block_id is not None or update.is_stateful
    ]
    if not edits:
        return
    by_label = _ids_by_label(connection, {agent_id for agent_id, edit in edits if edit.block_id is None})
    placed = [(agent_id, edit, edit.block_id or by_label.get((agent_id, edit.label))) for agent_id, edit in edits]
    ids = (block_id for _, _, block_id in placed if block_id is not None)
    before = load_blocks(connection, job.user_id, ids, is_locked=True)
    after = dict(before)
    for agent_id, edit, block_id in placed:
        if block_id is None:
            _edit_settings_block(connection, job.user_id, agent_id, edit)
        elif block_id in after:  # else it was deleted meanwhile
            after[block_id] = _edited(after[block_id], edit)
    _write_values(connection, before, after)


def _write_values(
    connection: sa.Connection, before: Mapping[str, StoredBlock], after: Mapping[str, StoredBlock]
) -> None:
    now = utc_now()
    for block_id, block in after.items():
        if block.value != before[block_id].value:
            values = {"value": block.value.encode(), "updated_at": now}
            connection.execute(sa.update(blocks).where(blocks.c.id == block_id).values(**values))


def _edited(block: StoredBlock, edit: MemoryEdit) -> StoredBlock:
    if block.is_read_only:
        logger.warning("block %s is read-only now: the edit of a run that saw it writable is dropped", block.id)
        return block
    return replace(block, value=_merged(block.id, edit, block.value, block.limit))


def _edit_settings_block(connection: sa.Connection, user_id: str, agent_id: str, edit: MemoryEdit) -> None:
    query = sa.select(memory_blocks.c.value).where(_of_settings(user_id, agent_id, edit.label))
    present = connection.execute(query.with_for_update()).scalar()
    value = edit.value
    if present is not None:
        value = _merged(f"{edit.label!r} of agent {agent_id!r}", edit, present.decode(), edit.limit)
    set_memory(connection, user_id, agent_id, edit.label, value)


def _merged(name: str, edit: MemoryEdit, present: str, limit: int) -> str:
    merged = merge_texts(edit.base, present, edit.value)
    if len(merged) <= limit:
        return merged
    logger.warning("block %s has changed meanwhile and has no room for a run's edit as well, which is dropped", name)
    return present


def _of_settings(user_id: str, agent_id: str, label: str) -> sa.ColumnElement[bool]:
    table = memory_blocks.c
    return sa.and_(table.user_id == user_id, table.agent_id == agent_id, table.label == label)


def _ids_by_label(connection: sa.Connection, agent_ids: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return the ids of the blocks that are attached to these agents, by agent and label."""
    found: dict[tuple[str, str], str] = {}
    for chunk in chunks(agent_ids):
        query = sa.select(agent_blocks.c.agent_id, blocks.c.label, blocks.c.id)
        query = query.join(blocks, agent_blocks.c.block_id == blocks.c.id).where(agent_blocks.c.agent_id.in_(chunk))
        found.update(((row.agent_id, row.label), row.id) for row in connection.execute(query))
    return found
