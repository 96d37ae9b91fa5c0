"""Agents: plain async code that answers one request, without Ray.

Owns the agent loop (model calls, tools, approvals, memory), the attempt at an item, and checkpoints of a run's steps.
Imports `models`, `config` and `schema`; knows nothing of the store, of jobs or of Ray.  Invariants:

- Whatever an agent raises becomes the outcome of its request; only a cancel from outside is raised.
- Attempts go in and out as bytes of JSON, so that every executor can carry them.
- A tool runs only after the model's reply that asked for it is saved, so that another attempt does not run it again.

Start reading at `attempt` (one attempt at an item), then `loop` (the steps of a run) and `base` (the state of a run).
"""

from batchray.agents.attempt import (
    AttemptContext,
    AttemptInput,
    AttemptReport,
    AttemptRunner,
    encode_input,
    failed_report,
    read_report,
)
from batchray.agents.base import AgentRunner, Run
from batchray.agents.build import Clients, build_agent
from batchray.agents.checkpoints import (
    CheckpointedRun,
    Checkpoints,
    CheckpointSink,
    RunUpdate,
    SaveCheckpoints,
    completed_work,
    pump_checkpoints,
)
from batchray.agents.function import FunctionAgent
from batchray.agents.imports import Imports
from batchray.agents.loop import ToolLoop
from batchray.agents.loop_watch import Blocked, Owner
from batchray.agents.user_code import UserCodeError, contained

__all__ = [
    "AgentRunner",
    "AttemptContext",
    "AttemptInput",
    "AttemptReport",
    "AttemptRunner",
    "Blocked",
    "CheckpointSink",
    "CheckpointedRun",
    "Checkpoints",
    "Clients",
    "FunctionAgent",
    "Imports",
    "Owner",
    "Run",
    "RunUpdate",
    "SaveCheckpoints",
    "ToolLoop",
    "UserCodeError",
    "build_agent",
    "completed_work",
    "contained",
    "encode_input",
    "failed_report",
    "pump_checkpoints",
    "read_report",
]
