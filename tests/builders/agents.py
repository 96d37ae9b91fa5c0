"""Agents with a scripted model, and the requests and messages around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from batchray.agents import AttemptReport, AttemptRunner, encode_input, read_report
from batchray.agents.base import input_messages
from batchray.config import Agent, BoundAgent, bind_agents
from batchray.schema import (
    AgentRequest,
    Message,
    new_job_id,
)


def bound(**fields: Any) -> BoundAgent:
    """Return an agent; with a script, its model is `offline/scripted`."""
    if "script" in fields:
        fields["model"] = "offline/scripted"
    return bind_agents([Agent.model_validate({"id": "a", **fields})], environment={}).agents["a"]


def calls(*asked: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a scripted reply that calls these tools."""
    return {"tool_calls": [{"name": name, "arguments": arguments} for name, arguments in asked]}


def returns(messages: Sequence[Message]) -> list[tuple[str, str | None]]:
    """Return status and text of each tool return."""
    return [(each.status, each.func_response) for message in messages for each in message.tool_returns or ()]


JOB = new_job_id()


class Conversation:
    """A conversation with one agent: each request carries the history and the memory."""

    def __init__(self, attempt_runner: AttemptRunner, agent: BoundAgent) -> None:
        self._attempt_runner, self._agent = attempt_runner, agent
        self.history: list[Message] = []
        self.index = 0
        self.memory: dict[str, str] = {}

    async def ask(self, **given: Any) -> tuple[AttemptReport, list[Message]]:
        given = {"agent_id": "a", **({} if "messages" in given else {"input": "hi"}), **given}
        context = orjson.dumps(
            {"history": [each.model_dump(mode="json") for each in self.history], "memory": self.memory}
        )
        item = encode_input(JOB, self.index, 1, json.dumps(given).encode(), context)
        report = read_report(await self._attempt_runner.run_attempt(self._agent, item))
        messages = [Message.model_validate(each) for each in json.loads(report.messages)]
        request = AgentRequest.model_validate(given)
        if report.error is None:
            self.history += [*input_messages(JOB, self.index, request, datetime.now(UTC)), *messages]
            self.memory = dict(report.memory)
        self.index += 1
        return report, messages
