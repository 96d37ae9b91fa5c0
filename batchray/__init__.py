"""batchray runs large batches of LLM agent requests in parallel on Ray.

Importing it starts nothing and loads neither ray nor aiohttp; the names below load what they need on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchray.api import arun, attach, resume, run, shutdown, submit
    from batchray.config import Agent, Provider, Settings, load_agents
    from batchray.errors import BatchrayError
    from batchray.executors.ray.job_actor import find_job
    from batchray.jobs.handle import Job
    from batchray.schema import AgentRequest, Result
    from batchray.views.results import text_of

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentRequest",
    "BatchrayError",
    "Job",
    "Provider",
    "Result",
    "Settings",
    "arun",
    "attach",
    "find_job",
    "load_agents",
    "resume",
    "run",
    "shutdown",
    "submit",
    "text_of",
]

_HOMES = {
    "batchray.api": ("arun", "attach", "resume", "run", "shutdown", "submit"),
    "batchray.executors.ray.job_actor": ("find_job",),
    "batchray.config": ("Agent", "Provider", "Settings", "load_agents"),
    "batchray.errors": ("BatchrayError",),
    "batchray.jobs.handle": ("Job",),
    "batchray.views.results": ("text_of",),
    "batchray.schema": ("AgentRequest", "Result"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'batchray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
