"""Builds agents from their configuration, in the process that runs them: clients, tools and functions."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from batchray.agents.base import AgentRunner
from batchray.agents.function import FunctionAgent
from batchray.agents.loop import ToolLoop
from batchray.agents.memory import memory_tools
from batchray.agents.tools import load_function, load_tools
from batchray.config import Access, Agent, AgentSet, BoundAgent, Provider, endpoint_id
from batchray.errors import ConfigError
from batchray.models import CallTimeouts, ModelClient, ProviderGate, RetryPolicy, make_client
from batchray.models.reply_cache import ReplyCache
from batchray.models.responses_fields import lost_fields
from batchray.models.routing import openai_protocol
from batchray.schema import ProviderWait
from batchray.support.captured_output import route_streams

logger = logging.getLogger(__name__)

_LOST = "agent %r: its model is asked in the Responses API, which has no %s; the field is left out"


class Clients:
    """The model clients of one event loop, one per provider, shared by all requests on it.

    `on_provider_wait` is called when a provider begins or ends to hold calls back.
    """

    def __init__(self, on_provider_wait: Callable[[], None] = lambda: None) -> None:
        self._clients: dict[tuple[str, str, str | None, Access | None], ModelClient] = {}
        self._gates: list[tuple[str, str, ProviderGate]] = []
        self._on_provider_wait = on_provider_wait

    def get(self, name: str, provider: Provider, key: SecretStr | None, access: Access | None = None) -> ModelClient:
        """Return the provider's client.  One per name, settings, key and access."""
        secret = key.get_secret_value() if key else None
        identity = (name, provider.model_dump_json(), secret, access)
        if identity not in self._clients:
            max_wait_s = provider.provider_patience_s or math.inf
            gate = ProviderGate(max_wait_s=max_wait_s, on_change=self._on_provider_wait)
            self._gates.append((name, endpoint_id(name, provider, key, access), gate))
            self._clients[identity] = make_client(
                name,
                provider.protocol,
                api_key=secret,
                auth=provider.auth,
                timeouts=_timeouts(provider),
                retry=RetryPolicy(max_retries=provider.max_retries),
                gate=gate,
                send_reasoning=provider.send_reasoning,
                **_reach(provider, access),
            )
        return self._clients[identity]

    def provider_waits(self) -> list[ProviderWait]:
        """Return what holds calls back, for each provider that does now."""
        waits = (gate.status(name, endpoint) for name, endpoint, gate in self._gates)
        return [wait for wait in waits if wait is not None]

    async def close(self) -> None:
        """Close all clients."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))
        self._clients.clear()
        self._gates.clear()


def _reach(provider: Provider, access: Access | None) -> dict[str, Any]:
    """Return how to reach a provider, as arguments of a client."""
    if access is None:
        return {"base_url": provider.base_url}
    given = {name: getattr(access, name) for name in ("base_url", "proxy", "ca_pem", "secrets")}
    return {**given, "headers": dict(access.headers), "query": dict(access.query)}


def _timeouts(provider: Provider) -> CallTimeouts:
    limits = provider.timeouts
    # An answer that is not streamed comes at once at its end, after a silence as long as the whole call.
    idle_s = limits.idle_s if provider.stream else limits.call_s
    return CallTimeouts(connect_s=limits.connect_s, idle_s=idle_s, call_s=limits.call_s)


def build_agent(bound: BoundAgent, clients: Clients) -> AgentRunner:
    """Build the agent's runner.  Raises ConfigError if its Python code cannot be imported."""
    agent = bound.agent
    try:
        if agent.run is not None:
            return FunctionAgent(load_function(agent.run, bound.import_paths))
        if bound.provider is None or agent.provider_name is None:
            raise ConfigError("it is not bound to a provider")
        provider = _routed(agent, bound.provider, bound.access)
        client = clients.get(agent.provider_name, provider, bound.key, bound.access)
        if added := provider.request_body:
            agent = agent.model_copy(update={"body": {**added, **agent.body}})
        tools = load_tools(agent.tools, agent.tool_timeout_s, bound.import_paths)
        cache = ReplyCache(Path(bound.cache_dir), bound.cache_max_bytes) if agent.cache and bound.cache_dir else None
        return ToolLoop(agent, client, tools, memory_tools(agent.memory_blocks, agent.tool_timeout_s), cache)
    except ConfigError as error:
        raise ConfigError(f"agent {agent.id!r}: {error.reason}") from error.__cause__


def protocol_of(bound: BoundAgent) -> str | None:
    """Return the protocol in which an agent's model is asked; None for an agent without a model."""
    return _routed(bound.agent, bound.provider, bound.access).protocol if bound.provider is not None else None


def _routed(agent: Agent, provider: Provider, access: Access | None) -> Provider:
    """Return the provider with the protocol that the agent asks for or its model needs."""
    protocol: str = agent.protocol or provider.protocol
    if agent.protocol is None and protocol == "openai" and access is not None:
        protocol = openai_protocol(agent.model_name, access.base_url)
    return provider.model_copy(update={"protocol": protocol}) if protocol != provider.protocol else provider


def check_agents_build(agents: AgentSet) -> None:
    """Build every agent once, so that what cannot be built is known before anything runs.  Raises ConfigError.

    Logs a warning for fields of an agent's `body` that its protocol does not have.
    """
    route_streams()
    clients = Clients()
    for bound in agents.agents.values():
        build_agent(bound, clients)
        if protocol_of(bound) == "responses":
            for name in lost_fields(bound.agent.body):
                logger.warning(_LOST, bound.agent.id, name)
