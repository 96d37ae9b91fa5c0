"""batchray runs large batches of LLM agent requests in parallel on Ray.

Importing it starts nothing and loads neither ray nor aiohttp; the names below load what they need on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from batchray.support import moved

if TYPE_CHECKING:
    from batchray.agents.tools import ToolError, is_cancelled
    from batchray.api import (
        aresume,
        aretry,
        arun,
        attach,
        jobs,
        resume,
        retry,
        run,
        shutdown,
        submit,
        submit_resume,
        submit_retry,
    )
    from batchray.config import Agent, Provider, Settings, Tool, load_agents
    from batchray.errors import BatchrayError
    from batchray.executors.ray.remote_job import RemoteJob, find_job
    from batchray.experiments.comparison import compare
    from batchray.experiments.cross import cross
    from batchray.experiments.scoring import apply
    from batchray.experiments.variants import variants
    from batchray.jobs.handle import Job
    from batchray.schema import AgentRequest, Result
    from batchray.schema.progress import Percentiles
    from batchray.store import JobRecord
    from batchray.views.results import text_of as text_of

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentRequest",
    "BatchrayError",
    "Job",
    "JobRecord",
    "Percentiles",
    "Provider",
    "RemoteJob",
    "Result",
    "Settings",
    "Tool",
    "ToolError",
    "apply",
    "aresume",
    "aretry",
    "arun",
    "attach",
    "compare",
    "cross",
    "find_job",
    "is_cancelled",
    "jobs",
    "load_agents",
    "resume",
    "retry",
    "run",
    "shutdown",
    "submit",
    "submit_resume",
    "submit_retry",
    "variants",
]

_HOMES = {
    "batchray.agents.tools": ("ToolError", "is_cancelled"),
    "batchray.api": (
        "aresume",
        "aretry",
        "arun",
        "attach",
        "resume",
        "retry",
        "run",
        "shutdown",
        "submit",
        "submit_resume",
        "submit_retry",
    ),
    "batchray.config": ("Agent", "Provider", "Settings", "Tool", "load_agents"),
    "batchray.errors": ("BatchrayError",),
    "batchray.executors.ray.remote_job": ("RemoteJob", "find_job"),
    "batchray.experiments.comparison": ("compare",),
    "batchray.experiments.cross": ("cross",),
    "batchray.experiments.scoring": ("apply",),
    "batchray.experiments.variants": ("variants",),
    "batchray.jobs.handle": ("Job",),
    "batchray.schema": ("AgentRequest",),
    "batchray.schema.progress": ("Percentiles",),
    "batchray.store": ("JobRecord",),
    "batchray.views.results": ("Result",),  # with its view in notebooks
}
_DEPRECATED = {"text_of": "batchray.views.results"}
"""Names of 0.1.0 that warn when they are used."""

moved.install()


if not TYPE_CHECKING:  # or a type checker would know every name

    def __getattr__(name: str) -> Any:
        for module, names in _HOMES.items():
            if name in names:
                return getattr(import_module(module), name)
        if name in _DEPRECATED:
            return getattr(import_module(_DEPRECATED[name]), name)
        if name == "jobs":  # a package that can be called
            return import_module("batchray.jobs")
        raise AttributeError(f"module 'batchray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
