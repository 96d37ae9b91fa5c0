"""What a request goes on with: the conversation before it, the agent's memory, and its turn with the agent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

import orjson
from pydantic import TypeAdapter

from batchray.agents import Report
from batchray.agents.approvals import answers_in, brings_answers
from batchray.agents.base import input_messages
from batchray.config import Agent, AgentSet, BoundAgent
from batchray.schema import AgentRequest, ApprovalCreate, Message, is_message_id
from batchray.store import JobRecord, NewOutcome, Patience, PendingItem, Prior, Sequel, Store
from batchray.window import Keys

_MESSAGES = TypeAdapter(list[Message])
# How JSON may hide a letter or an underscore.
_ESCAPED = re.compile(rb"\\u00[4-7]")


async def context_of(
    store: Store, patience: Patience, job: JobRecord, agent: Agent, item: PendingItem, steps: Sequence[bytes] = ()
) -> bytes:
    """Return what an item goes on with, as its agent's side reads it; empty for one that starts anew.

    `steps` are the checkpoints of its earlier attempts.  A run that it answers is claimed by it.
    Raises ApprovalError where there is none, or its answers do not fit.
    """
    request = _answering(item)
    if request is None and not agent.stateful:
        return _encoded((), {}, steps) if steps else b""
    answered = frozenset(answer.tool_call_id for answer in answers_in(request)) if request else None
    kept = await patience.call(
        store.go_on,
        job,
        item.index,
        agent.id,
        is_stateful=agent.stateful,
        answered=answered,
        request_id=_request_id(request) if request else None,
    )
    return await asyncio.to_thread(_encoded, kept.priors, kept.memory, steps)  # a long conversation takes its time


def sequel_of(report: Report) -> Sequel | None:
    """Return what a report leaves for later requests, but for whose it is."""
    if not report.pending and not report.memory:
        return None
    return Sequel("", pending=report.pending, memory=report.memory)


def with_sequel(outcome: NewOutcome, agent: Agent, item: PendingItem) -> NewOutcome:
    """Return an outcome that says whose conversation it belongs to, where later requests have to do with it."""
    if not agent.stateful and outcome.sequel is None and _answering(item) is None:
        return outcome
    sequel = replace(outcome.sequel or Sequel(agent.id), agent_id=agent.id, is_stateful=agent.stateful)
    return replace(outcome, sequel=sequel)


def messages_of(prior: Prior) -> list[Message]:
    """Return an item's input and output messages."""
    return [*_inputs(prior), *_MESSAGES.validate_json(prior.messages)]


def limited(agents: AgentSet) -> tuple[dict[str, Keys], dict[Hashable, int]]:
    """Return what limits the requests of each agent, and to how many: its provider, and itself where it is stateful."""
    providers = agents.limits()
    limits: dict[Hashable, int] = {("provider", name): n for name, n in providers.items()}
    keys: dict[str, Keys] = {}
    for agent_id, bound in agents.agents.items():
        name, own = bound.agent.provider_name, ("agent", agent_id)
        keys[agent_id] = (("provider", name),) if name in providers else ()
        if bound.agent.stateful:
            keys[agent_id] += (own,)
            limits[own] = 1
    return keys, limits


class Turn(NamedTuple):
    """What a request has to wait for beside its job's window: one of `size` places that all jobs share."""

    key: Hashable
    size: int


def turns_of(bound: BoundAgent, whose: Hashable) -> list[Turn]:
    """Return what a request to an agent of this user waits for: the agent where it remembers, and its provider."""
    agent, provider = bound.agent, bound.provider
    turns = [Turn(("agent", whose, agent.id), 1)] if agent.stateful else []
    if provider is not None and provider.max_in_flight is not None:
        address = (agent.provider_name, provider.protocol, provider.base_url)
        turns.append(Turn(("provider", address, provider.max_in_flight), provider.max_in_flight))
    return turns


class Turns:
    """Who may go on, over all jobs of a process; who asks first goes first."""

    def __init__(self) -> None:
        self._places: dict[Hashable, asyncio.Semaphore] = {}
        self._n_users: dict[Hashable, int] = {}

    @asynccontextmanager
    async def of(self, turn: Turn) -> AsyncIterator[None]:
        """Wait for a place, and have it while entered."""
        key = turn.key
        places = self._places.setdefault(key, asyncio.Semaphore(turn.size))
        self._n_users[key] = self._n_users.get(key, 0) + 1
        try:
            async with places:
                yield
        finally:
            self._n_users[key] -= 1
            if not self._n_users[key]:
                del self._places[key], self._n_users[key]


def _answering(item: PendingItem) -> AgentRequest | None:
    """Return the request where it brings answers to tool calls."""
    body = item.request
    # No request does without one of these in it, and bodies may be long.
    if b"approv" not in body and b"tool_return" not in body and not (b"\\u00" in body and _ESCAPED.search(body)):
        return None
    request = AgentRequest.model_validate_json(item.request)
    return request if brings_answers(request) else None


def _request_id(request: AgentRequest) -> str | None:
    given = (each.approval_request_id for each in request.messages or () if isinstance(each, ApprovalCreate))
    return next((each for each in given if each and is_message_id(each)), None)


def _encoded(priors: Sequence[Prior], memory: Mapping[str, str], steps: Sequence[bytes]) -> bytes:
    # Spliced, because the outputs of a long conversation are JSON already, and so are checkpoints.
    arrays = [
        array for prior in priors for array in (_MESSAGES.dump_json(_inputs(prior), exclude_none=True), prior.messages)
    ]
    history = b",".join(inside for array in arrays if (inside := array.strip()[1:-1].strip()))
    done = [orjson.Fragment(step) for step in steps]
    return orjson.dumps({"history": orjson.Fragment(b"[" + history + b"]"), "memory": memory, "steps": done})


def _inputs(prior: Prior) -> list[Message]:
    request = AgentRequest.model_validate_json(prior.request)
    return input_messages(prior.job_id, prior.index, request, datetime.fromisoformat(prior.created_at))
