"""Converts memory blocks between Letta's shape, the store's and that of runs."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from batchray.config import Agent, MemoryBlock, StoredMemoryBlock
from batchray.schema import Block, CreateBlock, UpdateBlock
from batchray.schema.validation_text import first_problem
from batchray.server.errors import HttpError
from batchray.store import NewBlock, StoredBlock

MAX_LIMIT = 1_000_000
"""The highest `limit` of a block that clients may ask for, in characters."""

# The fields of a client's block that are stored, besides its label and value.
_FIELDS = Block.model_fields.keys() - {"id", "label", "value", "created_by_id", "last_updated_by_id"}


def new_block(given: CreateBlock | Mapping[str, Any]) -> NewBlock:
    """Return the block that a client describes.  Raises HttpError 422."""
    fields = given if isinstance(given, Mapping) else given.model_dump(exclude_none=True)
    return _checked({name: value for name, value in fields.items() if value is not None})


def changed_block(before: StoredBlock, given: UpdateBlock) -> NewBlock:
    """Return a block with a client's changes.  Raises HttpError 422."""
    fields = {**before.spec, "label": before.label, "value": before.value}
    changed = _checked({**fields, **given.model_dump(exclude_none=True)})
    return changed._replace(spec={**before.spec, **changed.spec})


def shown_block(block: StoredBlock) -> Block:
    """Return a stored block as clients see it."""
    users = {"created_by_id": block.user_id, "last_updated_by_id": block.user_id}
    shown = {name: value for name, value in block.spec.items() if name in _FIELDS}
    return Block(id=block.id, label=block.label, value=block.value, **shown, **users)


def shown_settings_blocks(agent: Agent, memory: Mapping[str, str]) -> list[Block]:
    """Return the blocks of an operator's agent as clients see them; `memory` holds the edited ones by label."""
    return [
        Block(
            id=settings_block_id(agent.id, position),
            label=block.label,
            value=memory.get(block.label, block.value),
            limit=block.limit,
            description=block.description,
            read_only=block.read_only,
        )
        for position, block in enumerate(agent.memory_blocks)
    ]


def new_run_block(block: NewBlock) -> MemoryBlock:
    """Return a block that is not stored yet, to check an agent that will have it."""
    return MemoryBlock(label=block.label, limit=block.spec["limit"], read_only=bool(block.spec.get("read_only")))


def run_blocks(blocks: Sequence[StoredBlock]) -> tuple[StoredMemoryBlock, ...]:
    """Return stored blocks as a job keeps them: their values are read when a request starts."""
    return tuple(
        StoredMemoryBlock(
            id=block.id,
            label=block.label,
            limit=block.limit,
            description=block.spec.get("description"),
            read_only=block.is_read_only,
        )
        for block in blocks
    )


def settings_block_id(agent_id: str, position: int) -> str:
    """Return the id of a block of an operator's agent, derived from its place, so that all servers agree on it."""
    return f"block-{derived_uuid(agent_id, str(position))}"


def derived_uuid(*parts: str) -> uuid.UUID:
    """Return a uuid4 that depends on these texts alone."""
    return uuid.UUID(bytes=hashlib.sha256("\0".join(parts).encode()).digest()[:16], version=4)


def _checked(fields: Mapping[str, Any]) -> NewBlock:
    try:
        block = MemoryBlock.model_validate({name: fields[name] for name in MemoryBlock.model_fields if name in fields})
    except ValidationError as error:
        raise HttpError(422, first_problem(error, MemoryBlock)) from None
    if block.limit > MAX_LIMIT:
        raise HttpError(422, f"limit: {block.limit:,} characters are more than a block may have, {MAX_LIMIT:,}")
    spec = {name: value for name, value in fields.items() if name in _FIELDS}
    return NewBlock(block.label, block.value, {**spec, "limit": block.limit})
