"""Builds agents from their configuration, in the process that runs them: clients, tools and functions."""

from __future__ import annotations

import asyncio

from pydantic import SecretStr

from batchray.agents.base import AgentRunner
from batchray.agents.function import FunctionAgent
from batchray.agents.loop import ToolLoop
from batchray.agents.memory import memory_tools
from batchray.agents.tools import load_function, load_tools
from batchray.config import AgentSet, BoundAgent, Provider
from batchray.errors import ConfigError
from batchray.models import CallTimeouts, ModelClient, RetryPolicy, make_client


class Clients:
    """The model clients of one event loop, one per provider, shared by all requests on it."""

    def __init__(self) -> None:
        self._clients: dict[tuple[str, str, str | None], ModelClient] = {}

    def get(self, name: str, provider: Provider, key: SecretStr | None) -> ModelClient:
        """Return the provider's client.  One per name, settings and key."""
        secret = key.get_secret_value() if key else None
        identity = (name, provider.model_dump_json(), secret)
        if identity not in self._clients:
            self._clients[identity] = make_client(
                name,
                provider.protocol,
                base_url=provider.base_url,
                api_key=secret,
                timeouts=CallTimeouts(**provider.timeouts.model_dump()),
                retry=RetryPolicy(max_retries=provider.max_retries),
            )
        return self._clients[identity]

    async def close(self) -> None:
        """Close all clients."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))
        self._clients.clear()


def build_agent(bound: BoundAgent, clients: Clients) -> AgentRunner:
    """Build the agent's runner.  Raises ConfigError if its Python code cannot be imported."""
    agent = bound.agent
    try:
        if agent.run is not None:
            return FunctionAgent(load_function(agent.run, bound.import_paths))
        if bound.provider is None or agent.provider_name is None:
            raise ConfigError("it is not bound to a provider")
        client = clients.get(agent.provider_name, bound.provider, bound.key)
        tools = load_tools(agent.tools, agent.tool_timeout_s, bound.import_paths)
        return ToolLoop(agent, client, tools, memory_tools(agent.memory_blocks, agent.tool_timeout_s))
    except ConfigError as error:
        raise ConfigError(f"agent {agent.id!r}: {error.reason}") from error.__cause__


def check_agents_build(agents: AgentSet) -> None:
    """Build every agent once, so that what cannot be built is known before anything runs.  Raises ConfigError."""
    clients = Clients()
    for bound in agents.agents.values():
        build_agent(bound, clients)
