"""Configuration: settings, providers and agents, read from files, the environment and arguments.

Owns the models of the configuration files and the rules for joining agents with providers.  Invariants:

- Everything is validated before anything runs.  An error names the file, the line and the value.
- A key is never part of a snapshot or a repr: a provider names the environment variable that holds it.
- The driver's environment says how providers are reached; workers get its values with the agents.
- Only this package reads `BATCHRAY_*` variables and providers' variables; other code gets the values passed.

Start reading at `settings` (how a driver runs) and `agents` (providers and agents), then `binding` (both joined).
"""

from batchray.config.access import Access, endpoint_id
from batchray.config.agents import (
    Agent,
    MemoryBlock,
    Prices,
    Provider,
    StoredMemoryBlock,
    Tool,
    function_name,
    tool_function,
    tool_to_data,
)
from batchray.config.binding import AgentSet, BoundAgent, bind_agents, load_agents
from batchray.config.settings import (
    ServerSettings,
    Settings,
    StoreSettings,
    chosen_settings,
    load_server_settings,
    load_settings,
    load_store_settings,
    with_earlier,
)

__all__ = [
    "Access",
    "Agent",
    "AgentSet",
    "BoundAgent",
    "MemoryBlock",
    "Prices",
    "Provider",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "StoredMemoryBlock",
    "Tool",
    "bind_agents",
    "chosen_settings",
    "endpoint_id",
    "function_name",
    "load_agents",
    "load_server_settings",
    "load_settings",
    "load_store_settings",
    "tool_function",
    "tool_to_data",
    "with_earlier",
]
