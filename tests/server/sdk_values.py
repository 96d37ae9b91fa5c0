"""Valid values for the parameters of the SDK's methods, with ids of real objects.

A value that is a function gets the `World`, and is called before each call of a method.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import httpx
from letta_client import Letta

from tests.server.sdk_methods import Method

MODEL = "offline/rules"
INPUT = "What is 2 + 3?"
FILE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "calculator", ' + (
    b'"messages": [{"role": "user", "content": "What is 2 + 3?"}]}}'
)
MESSAGE = {
    "role": "user",
    "content": [{"type": "text", "text": INPUT}],
    "type": "message",
    "otid": "one",
    "name": "Anna",
}


class World:
    """Objects on a server, which the calls are about."""

    def __init__(self, letta: Letta) -> None:
        self.letta = letta
        self._names = itertools.count()
        self.agent_id, self.changed_id = self.new_agent(), self.new_agent()
        self.batch_id, self.later_batch_id = self._ended_batch(), self._ended_batch()
        letta.agents.messages.create(self.agent_id, input=INPUT)
        self.block_id = self.new_block()
        letta.agents.blocks.attach(self.block_id, agent_id=self.agent_id)
        self.tool_id = str(letta.agents.retrieve(self.agent_id).tools[0].id)
        self.run_id = str(letta.batches.messages.list(self.batch_id).messages[0].run_id)
        self.step_id = str(letta.runs.steps.list(self.run_id).items[0].id)

    def name(self) -> str:
        return f"made by a test {next(self._names)}"

    def new_agent(self) -> str:
        created = self.letta.agents.create(
            name=self.name(), model=MODEL, tools=["calculate"], memory_blocks=[{"label": "human", "value": "Anna."}]
        )
        return str(created.id)

    def new_batch(self) -> str:
        return str(self.letta.batches.create(requests=[{"agent_id": self.agent_id, "input": INPUT}]).id)

    def new_block(self) -> str:
        return str(self.letta.blocks.create(label=self.name(), value="Anna.").id)

    def attached_block(self) -> str:
        block_id = self.new_block()
        self.letta.agents.blocks.attach(block_id, agent_id=self.agent_id)
        return block_id

    def new_file(self) -> str:
        url, file = str(self.letta.base_url.join("/v1/files")), {"file": ("batch.jsonl", FILE)}
        return str(httpx.post(url, files=file, data={"purpose": "batch"}, verify=False).json()["id"])

    def openai_batch(self) -> str:
        return f"batch_{self.batch_id.removeprefix('job-').replace('-', '')}"

    def cancelled_openai_batch(self) -> str:
        """Return a batch that may be cancelled at any time, because it is."""
        request: Any = {"agent_id": "endless", "input": INPUT}
        job_id = str(self.letta.batches.create(requests=[request]).id)
        self.letta.batches.cancel(job_id)
        return f"batch_{job_id.removeprefix('job-').replace('-', '')}"

    def new_run(self) -> list[str]:
        return [str(self.letta.agents.messages.create_async(self.agent_id, input=INPUT).id)]

    def ended_run(self) -> str:
        return str(self.letta.agents.messages.create(self.agent_id, input=INPUT).messages[0].run_id)

    def _ended_batch(self) -> str:
        job = self.letta.batches.retrieve(self.new_batch())
        while job.completed_at is None:
            time.sleep(0.02)
            job = self.letta.batches.retrieve(job.id)
        return str(job.id)


Value = Any | Callable[[World], Any]


def cursors(id_of: Callable[[World], str]) -> dict[str, Value]:
    """Return the cursors of a list, which are ids of its entries."""
    return dict.fromkeys(("after", "before"), id_of)


OF_EVERY_METHOD: dict[str, Value] = {
    "agent_id": lambda world: world.agent_id,
    "batch_id": lambda world: world.batch_id,
    "block_id": lambda world: world.block_id,
    "block_label": "human",
    "file_id": World.new_file,
    "openai_batch_id": World.openai_batch,
    "job_id": lambda world: world.batch_id,
    "tool_id": lambda world: world.tool_id,
    "tool_name": "calculate",
    "run_id": lambda world: world.run_id,
    "step_id": lambda world: world.step_id,
    # of lists
    "limit": 1,
    "order": "asc",
    "order_by": "created_at",
    "ascending": True,
    "project_id": "project-1",
    "identity_id": "identity-1",
    "identifier_keys": ["key"],
    "match_all_tags": True,
    "include": ["agent.blocks", "agent.tools", "agent.tags"],
    "include_relationships": ["tools"],
    "sort_by": "created_at",
    "query_text": "made",
    "conversation_id": "conversation-1",
    "group_id": "group-1",
    "include_err": True,
    # of messages
    "input": INPUT,
    "messages": [MESSAGE],
    "max_steps": 5,
    "client_tools": [{"name": "ask", "description": "Asks.", "parameters": {"type": "object", "properties": {}}}],
    "enable_thinking": "true",
    "include_return_message_types": ["assistant_message", "tool_call_message"],
    "assistant_message_tool_kwarg": "message",
    "assistant_message_tool_name": "send_message",
    "use_assistant_message": True,
    "streaming": True,
    "stream_tokens": True,
    "include_pings": True,
    "background": True,
    "callback_url": "https://example.com/done",
    "add_default_initial_messages": True,
    # of runs and steps
    "active": True,
    "agent_ids": lambda world: [world.agent_id],
    "run_ids": World.new_run,
    "statuses": ["completed", "failed"],
    "stop_reason": "end_turn",
    "batch_size": 10,
    "poll_interval": 0.1,
    "starting_after": 0,
    "start_date": "2026-01-02T03:04:05Z",
    "end_date": "2096-01-02T03:04:05Z",
    "feedback": "positive",
    "has_feedback": True,
    "trace_ids": ["trace-1"],
    # of tools
    "args": {"expression": "1 + 2"},
    "body_requires_approval": True,
    "query_requires_approval": True,
    "names": ["calculate"],
    "tool_types": ["custom"],
    "exclude_tool_types": ["letta_core"],
    "return_only_letta_tools": True,
    "search": "calc",
    "query": "calculate",
    "search_mode": "fts",
    # of blocks
    "connected_to_agents_count_eq": [1],
    "connected_to_agents_count_gt": 0,
    "connected_to_agents_count_lt": 9,
    "deployment_id": "deployment-1",
    "description_search": "Who",
    "entity_id": "entity-1",
    "is_template": True,
    "label": World.name,
    "label_search": "made",
    "preserve_on_migration": True,
    "read_only": True,
    "template_name": "template",
    "templates_only": True,
    "value": "Anna lives in Rome.",
    "value_search": "Anna",
    # of models
    "provider_category": ["base"],
    "provider_name": "offline",
    "provider_type": "openai",
    # of agents
    "agent_type": "memgpt_agent",
    "base_template_id": "template-1",
    "block_ids": lambda world: [world.block_id],
    "compaction_settings": {"model": MODEL, "mode": "all"},
    "context_window_limit": 32_000,
    "description": "Calculates.",
    "embedding": "openai/text-embedding-3-small",
    "embedding_chunk_size": 300,
    "embedding_config": {"embedding_dim": 8, "embedding_endpoint_type": "openai", "embedding_model": "small"},
    "enable_reasoner": True,
    "enable_sleeptime": True,
    "folder_ids": ["folder-1"],
    "from_template": "template-1",
    "hidden": True,
    "identity_ids": ["identity-1"],
    "include_base_tool_rules": True,
    "include_base_tools": True,
    "include_default_source": True,
    "include_multi_agent_tools": True,
    "initial_message_sequence": [MESSAGE],
    "last_run_completion": "2026-01-02T03:04:05Z",
    "last_run_duration_ms": 5,
    "last_stop_reason": "end_turn",
    "llm_config": {"model": "rules", "handle": MODEL, "model_endpoint_type": "openai", "context_window": 32_000},
    "max_files_open": 3,
    "max_reasoning_tokens": 100,
    "max_tokens": 100,
    "memory_blocks": [{"label": "persona", "value": "A clerk.", "limit": 500, "description": "Who it is."}],
    "memory_variables": {"name": "Anna"},
    "message_buffer_autoclear": True,
    "message_ids": ["message-1"],
    "metadata": {"team": 7},
    "model": MODEL,
    "model_settings": {"provider_type": "openai", "temperature": 0.5, "max_output_tokens": 100},
    "name": World.name,
    "parallel_tool_calls": True,
    "per_file_view_window_char_limit": 1000,
    "project": "project-1",
    "reasoning": True,
    "response_format": {"type": "json_object"},
    "secrets": {"TOKEN": "secret"},
    "source_ids": ["source-1"],
    "system": "Be brief.",
    "tags": ["of a test"],
    "template": True,
    "template_id": "template-1",
    "timezone": "Europe/Berlin",
    "tool_exec_environment_variables": {"NAME": "value"},
    "tool_ids": lambda world: [world.tool_id],
    "tool_rules": [{"type": "requires_approval", "tool_name": "calculate"}],
    "tools": ["calculate"],
}

OF_METHOD: dict[str, dict[str, Value]] = {
    "agents.delete": {"agent_id": World.new_agent},
    "agents.list": cursors(lambda world: world.agent_id),
    "agents.blocks.attach": {"block_id": World.new_block},
    "agents.blocks.detach": {"block_id": World.attached_block},
    "agents.blocks.list": cursors(lambda world: world.block_id),
    "agents.blocks.update": {"agent_id": World.new_agent, "limit": 500},
    "agents.messages.list": cursors(
        lambda world: world.letta.agents.messages.list(world.agent_id).items[0].id,
    ),
    "agents.messages.reset": {"agent_id": lambda world: world.changed_id},
    "agents.tools.attach": {"agent_id": lambda world: world.changed_id},
    "agents.tools.detach": {"agent_id": World.new_agent},
    "agents.tools.list": cursors(lambda world: world.tool_id),
    "agents.tools.update_approval": {"agent_id": lambda world: world.changed_id},
    "tools.list": cursors(lambda world: world.tool_id),
    "agents.update": {"agent_id": lambda world: world.changed_id},
    "blocks.agents.list": cursors(lambda world: world.agent_id),
    "blocks.create": {"limit": 500},
    "blocks.delete": {"block_id": World.new_block},
    "blocks.list": cursors(lambda world: world.block_id),
    "blocks.update": {"limit": 500},
    "batches.cancel": {"batch_id": World.new_batch},
    "batches.create": {
        "requests": lambda world: [
            {"agent_id": world.agent_id, "messages": [MESSAGE]},
            {"agent_id": world.agent_id, "input": INPUT, "max_steps": 3},
        ]
    },
    "batches.list": cursors(lambda world: world.batch_id),
    "runs.list": cursors(lambda world: world.run_id),
    "runs.messages.list": cursors(lambda world: world.letta.runs.messages.list(world.run_id).items[0].id),
    "runs.steps.list": cursors(lambda world: world.step_id),
    "steps.list": cursors(lambda world: world.step_id),
    "steps.messages.list": cursors(lambda world: world.letta.steps.messages.list(world.step_id).items[0].id),
    "batches.messages.list": cursors(
        lambda world: world.letta.batches.messages.list(world.batch_id).messages[0].id,
    ),
}

_ASKING = dict.fromkeys(("create", "create_async", "stream"), ("input",))
NEEDED: dict[str, tuple[str, ...]] = {
    "agents.messages.cancel": ("run_ids",),
    "agents.create": ("model", "tools"),
    **{f"agents.messages.{name}": names for name, names in _ASKING.items()},
}
"""Optional parameters that a minimal call needs nevertheless."""

INSTEAD_OF = {"messages": "input", "before": "after"}
"""Parameters that replace another one."""


def given(world: World, method: Method, *names: str) -> dict[str, Any]:
    """Return the arguments of a call: the required ones, and those of `names`."""
    wanted = dict.fromkeys([*method.required, *NEEDED.get(str(method), ()), *names])
    replaced = {INSTEAD_OF.get(name) for name in names}
    values = {**OF_EVERY_METHOD, **OF_METHOD.get(str(method), {})}
    found = {name: values[name] for name in wanted if name not in replaced}
    return {name: value_for(world, value) for name, value in found.items()}


def value_for(world: World, value: Value) -> Any:
    """Return a value; one of a function is made now."""
    return value(world) if callable(value) else value
