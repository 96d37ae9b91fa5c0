"""Agents: things that answer one request, in plain async code that has never heard of Ray."""

from batchray.agents.attempt import (
    AttemptContext,
    AttemptInput,
    AttemptReport,
    AttemptRunner,
    encode_input,
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
from batchray.agents.loop import ToolLoop

__all__ = [
    "AgentRunner",
    "AttemptContext",
    "AttemptInput",
    "AttemptReport",
    "AttemptRunner",
    "CheckpointSink",
    "CheckpointedRun",
    "Checkpoints",
    "Clients",
    "FunctionAgent",
    "Run",
    "RunUpdate",
    "SaveCheckpoints",
    "ToolLoop",
    "build_agent",
    "completed_work",
    "encode_input",
    "pump_checkpoints",
    "read_report",
]
