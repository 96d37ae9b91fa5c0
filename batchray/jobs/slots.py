"""Concurrency limits per provider and per agent, within one job and over all jobs of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import NamedTuple

from batchray.config import AgentSet, BoundAgent
from batchray.jobs.window import Keys


def window_limits(agents: AgentSet) -> tuple[dict[str, Keys], dict[Hashable, int]]:
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


class Slot(NamedTuple):
    """What a request has to wait for beside its job's window: one of `size` places that all jobs share."""

    key: Hashable
    size: int


def slots_of(bound: BoundAgent, whose: Hashable) -> list[Slot]:
    """Return what a request to an agent of this user waits for: the agent where it remembers, and its provider."""
    agent, provider = bound.agent, bound.provider
    turns = [Slot(("agent", whose, agent.id), 1)] if agent.stateful else []
    if provider is not None and provider.max_in_flight is not None:
        address = (agent.provider_name, provider.protocol, provider.base_url)
        turns.append(Slot(("provider", address, provider.max_in_flight), provider.max_in_flight))
    return turns


class KeyedSemaphore:
    """Who may go on, over all jobs of a process; who asks first goes first."""

    def __init__(self) -> None:
        self._places: dict[Hashable, asyncio.Semaphore] = {}
        self._n_users: dict[Hashable, int] = {}

    @asynccontextmanager
    async def of(self, turn: Slot) -> AsyncIterator[None]:
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
