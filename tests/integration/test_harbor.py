"""Exported trajectories, read by Harbor's own models and validator.

Run with -m formats.  `.ci/run` installs harbor without its requirements, which exclude others of this project's, and
names the place: HARBOR is a directory that pip has installed into.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

import batchray
from batchray import Agent, AgentRequest

pytestmark = pytest.mark.formats

CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}
ASK = {"name": "ask", "description": "Ask.", "parameters": {"type": "object", "properties": {}}}
IMAGES = [
    {"type": "image", "source": {"type": "url", "url": "https://h.test/a.png?x=1"}},
    {"type": "image", "source": {"type": "url", "url": "https://h.test/a"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
]
EARLIER = [
    {"role": "user", "content": "1 + 2"},
    {"role": "assistant", "content": [{"type": "tool_call", "id": "c", "name": "add", "input": {"a": 1, "b": 2}}]},
    {"role": "user", "content": [{"type": "tool_return", "tool_call_id": "c", "content": "3", "is_error": False}]},
    {"role": "user", "content": [{"type": "tool_return", "tool_call_id": "x", "content": "4", "is_error": True}]},
]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def answer(request: AgentRequest) -> str:
    if request.input == "fails":
        raise ValueError("fails")
    return "x"


def scripted(id: str, *script: dict[str, Any], **settings: Any) -> Agent:
    return Agent(id=id, model="offline/scripted", tools=(add,), script=script, **settings)


AGENTS = [
    Agent(id="f", run=answer),
    scripted("m", {"text": "hm", "reasoning": "I think", "tool_calls": [CALL]}, {"text": "3"}, system="Add."),
    scripted("waits", {"text": "w", "tool_calls": [CALL, {"name": "ask", "arguments": {}}]}),
    scripted("endless", {"tool_calls": [CALL]}, max_steps=1),
    scripted("bad", {"tool_calls": [{"name": "add", "arguments": {"a": "x"}}]}, {"text": "no"}),
]
REQUESTS: list[dict[str, Any]] = [
    {"agent_id": "f", "input": "x", "custom_id": 1, "metadata": {"a": [None]}},
    {"agent_id": "f", "input": "fails"},
    {"agent_id": "m", "input": "1 + 2", "include_return_message_types": []},
    {"agent_id": "waits", "input": "x", "client_tools": [ASK]},
    {"agent_id": "endless", "input": "x"},
    {"agent_id": "bad", "input": "x"},
    {"agent_id": "f", "messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, *IMAGES]}]},
    {"agent_id": "f", "messages": EARLIER},
    {"agent_id": "f", "messages": [{"role": "user", "content": ""}]},
]


@pytest.fixture(scope="module")
def validator() -> Any:
    sys.path.insert(0, os.environ["HARBOR"])
    return importlib.import_module("harbor.utils.trajectory_validator").TrajectoryValidator()


def test_harbor_reads_each_trajectory(validator: Any, tmp_path: Path) -> None:
    job = batchray.run(REQUESTS, AGENTS, data_dir=tmp_path / "data", executor="local", progress=False)
    job.export(tmp_path / "out", "atif")
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == len(REQUESTS)
    for file in files:
        assert validator.validate(file), (file.read_text(), validator.errors)
    lines = io.BytesIO()
    job.export(lines, "atif")
    assert [file.read_bytes() for file in files] == lines.getvalue().splitlines()


def test_harbor_keeps_all_that_is_written(validator: Any, tmp_path: Path) -> None:
    models = importlib.import_module("harbor.models.trajectories")
    job = batchray.run(REQUESTS, AGENTS, data_dir=tmp_path / "data", executor="local", progress=False)
    lines = io.BytesIO()
    job.export(lines, "atif")
    for line in lines.getvalue().splitlines():
        assert models.Trajectory.model_validate_json(line).to_json_dict() == orjson.loads(line)
