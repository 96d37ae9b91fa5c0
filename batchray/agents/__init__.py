"""Agents: things that answer one request, in plain async code that has never heard of Ray."""

from batchray.agents.answer import Answerer, Context, Item, Report, encode_item, read_report
from batchray.agents.base import AgentRunner, Run
from batchray.agents.build import Clients, build_agent
from batchray.agents.function import FunctionAgent
from batchray.agents.loop import ToolLoop
from batchray.agents.steps import Checkpoints, Fetched, Keep, Keeper, Standstill, SteppedRun, done_in, follow, untimed

__all__ = [
    "AgentRunner",
    "Answerer",
    "Checkpoints",
    "Clients",
    "Context",
    "Fetched",
    "FunctionAgent",
    "Item",
    "Keep",
    "Keeper",
    "Report",
    "Run",
    "Standstill",
    "SteppedRun",
    "ToolLoop",
    "build_agent",
    "done_in",
    "encode_item",
    "follow",
    "read_report",
    "untimed",
]
