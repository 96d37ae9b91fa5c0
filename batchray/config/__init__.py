"""Settings, providers and agents: read from files, the environment and arguments; checked whole before anything runs.

Keys of providers are never part of it: a provider names the environment variable that holds its key.
"""

from batchray.config.agents import Agent, MemoryBlock, Prices, Provider, function_name
from batchray.config.binding import AgentSet, BoundAgent, bind_agents, load_agents
from batchray.config.settings import ServerSettings, Settings, load_server_settings, load_settings

__all__ = [
    "Agent",
    "AgentSet",
    "BoundAgent",
    "MemoryBlock",
    "Prices",
    "Provider",
    "ServerSettings",
    "Settings",
    "bind_agents",
    "function_name",
    "load_agents",
    "load_server_settings",
    "load_settings",
]
