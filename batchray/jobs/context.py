"""The context of a request: its agent's conversation and memory, and the checkpoints of earlier attempts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson
from pydantic import TypeAdapter

from batchray.agents import AttemptReport
from batchray.agents.approvals import has_answers, read_answers
from batchray.agents.base import input_messages
from batchray.config import Agent, StoredMemoryBlock
from batchray.jobs.deadlines import PausableDeadlines
from batchray.schema import AgentRequest, ApprovalCreate, Message, is_message_id
from batchray.store import (
    ConversationState,
    ConversationUpdate,
    HistoryItem,
    LedJob,
    MemoryEdit,
    NewOutcome,
    PendingItem,
    RetryingStore,
    StoredBlock,
)
from batchray.support.backoff import backoff_s

# How often a request asks for its turn of a stateful agent.
_FIRST_ASK_S, _LONGEST_ASK_S = 0.05, 1.0
_MESSAGES = TypeAdapter(list[Message])
# JSON may write a letter or an underscore as an escape.
_ESCAPED = re.compile(rb"\\u00[4-7]")


async def load_context(
    store: RetryingStore,
    job: LedJob,
    agent: Agent,
    item: PendingItem,
    aside: Callable[[], AbstractContextManager[None]],
    deadlines: PausableDeadlines,
    steps: Sequence[bytes] = (),
) -> bytes:
    """Return an item's context as an encoded `agents.AttemptContext`; empty if it starts without one.

    `steps` are the checkpoints of its earlier attempts.  It waits inside `aside` while a job of another process has the
    turn of a stateful agent; `deadlines` pause while it waits for the store.  If the item answers the tool calls of a
    run that waits for approval, it claims that run.  Raises ApprovalError if there is no such run, or if the answers do
    not fit.
    """
    request = _answering(item)
    block_ids = [block.id for block in agent.memory_blocks if isinstance(block, StoredMemoryBlock)]
    if request is None and not agent.stateful and not block_ids:
        return _encoded((), {}, steps) if steps else b""
    answered = frozenset(answer.tool_call_id for answer in read_answers(request)) if request else None

    async def load() -> ConversationState | None:
        with deadlines.commit():
            return await store.conversations.load(
                job,
                item.index,
                agent.id,
                is_stateful=agent.stateful,
                answered=answered,
                request_id=_request_id(request) if request else None,
                block_ids=block_ids,
            )

    kept = await load() or await _until_turn(load, aside)
    blocks = _present_blocks(agent, kept.blocks) if block_ids else None
    # On a thread, because encoding a long conversation takes a while.
    return await asyncio.to_thread(_encoded, kept.history, kept.memory, steps, blocks)


async def _until_turn(
    load: Callable[[], Awaitable[ConversationState | None]], aside: Callable[[], AbstractContextManager[None]]
) -> ConversationState:
    n_asked = 0
    with aside():
        while True:
            await asyncio.sleep(backoff_s(n_asked, _FIRST_ASK_S, _LONGEST_ASK_S))
            if (kept := await load()) is not None:
                return kept
            n_asked += 1


def conversation_update_of(report: AttemptReport, agent: Agent) -> ConversationUpdate | None:
    """Return what later requests need of a report, if anything."""
    if not report.pending and not report.memory:
        return None
    ids = {block.label: block.id for block in agent.memory_blocks if isinstance(block, StoredMemoryBlock)}
    limits = {block.label: block.limit for block in agent.memory_blocks}
    edits = [
        MemoryEdit(label, base, report.memory[label], limits[label], ids.get(label))
        for label, base in report.memory_bases.items()
    ]
    memory = {label: value for label, value in report.memory.items() if label not in ids}
    return ConversationUpdate(agent.id, pending=report.pending, memory=memory, edits=edits)


def with_conversation_update(outcome: NewOutcome, agent: Agent, item: PendingItem) -> NewOutcome:
    """Return an outcome with the agent whose conversation it continues, if later requests depend on it."""
    if not agent.stateful and outcome.conversation_update is None and _answering(item) is None:
        return outcome
    conversation_update = replace(
        outcome.conversation_update or ConversationUpdate(agent.id), agent_id=agent.id, is_stateful=agent.stateful
    )
    return replace(outcome, conversation_update=conversation_update)


def messages_of(prior: HistoryItem) -> list[Message]:
    """Return an item's input and output messages."""
    return [*_inputs(prior), *_MESSAGES.validate_json(prior.messages)]


def _present_blocks(agent: Agent, stored: Mapping[str, StoredBlock]) -> list[dict[str, Any]]:
    """Return an agent's stored blocks with their present values; those that were deleted are left out."""
    return [
        {
            "label": block.label,
            "value": found.value,
            "limit": found.limit,
            "description": found.spec.get("description"),
            "read_only": block.read_only or found.is_read_only,
        }
        for block in agent.memory_blocks
        if isinstance(block, StoredMemoryBlock) and (found := stored.get(block.id)) is not None
    ]


def _answering(item: PendingItem) -> AgentRequest | None:
    """Return the request if it answers tool calls, else None."""
    body = item.request
    # A request that does has one of these words in it.  Looking for them is cheaper than parsing a long body.
    if b"approv" not in body and b"tool_return" not in body and not (b"\\u00" in body and _ESCAPED.search(body)):
        return None
    request = AgentRequest.model_validate_json(item.request)
    return request if has_answers(request) else None


def _request_id(request: AgentRequest) -> str | None:
    given = (each.approval_request_id for each in request.messages or () if isinstance(each, ApprovalCreate))
    return next((each for each in given if each and is_message_id(each)), None)


def _encoded(
    history: Sequence[HistoryItem],
    memory: Mapping[str, str],
    steps: Sequence[bytes],
    blocks: Sequence[Mapping[str, Any]] | None = None,
) -> bytes:
    # Spliced, because the outputs of a conversation, which may be long, are JSON already, and so are checkpoints.
    arrays = [
        array for prior in history for array in (_MESSAGES.dump_json(_inputs(prior), exclude_none=True), prior.messages)
    ]
    joined = b",".join(inside for array in arrays if (inside := array.strip()[1:-1].strip()))
    done = [orjson.Fragment(step) for step in steps]
    encoded = {"history": orjson.Fragment(b"[" + joined + b"]"), "memory": dict(memory), "steps": done}
    return orjson.dumps(encoded if blocks is None else {**encoded, "blocks": blocks})


def _inputs(prior: HistoryItem) -> list[Message]:
    request = AgentRequest.model_validate_json(prior.request)
    return input_messages(prior.job_id, prior.index, request, datetime.fromisoformat(prior.created_at))
