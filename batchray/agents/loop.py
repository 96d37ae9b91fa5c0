"""The tool loop: ask the model, run the tools that it asked for, append, until it ends its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import orjson

from batchray.agents.base import Run
from batchray.config import Agent
from batchray.errors import InvalidResponseError
from batchray.models import ModelCall, ModelClient, ModelReply
from batchray.schema import (
    MessageToolReturn,
    StopReason,
    TextContent,
    ToolCall,
    Usage,
    new_id,
)
from batchray.tools import Tool, ToolError


class ToolLoop:
    """An agent made of a model, a system prompt and tools."""

    def __init__(self, agent: Agent, client: ModelClient, tools: Mapping[str, Tool]) -> None:
        self._agent, self._client, self._tools = agent, client, tools
        self._specs = tuple(tool.spec for tool in tools.values())

    async def run(self, run: Run) -> StopReason:
        """Take steps until the model ends its turn or the step limit is reached."""
        for _ in range(self._max_steps(run)):
            step_id = new_id("step")
            reply = await self._ask(run)
            self._append_reply(run, reply, step_id)
            if reply.finish_reason == "length":
                raise InvalidResponseError("max_tokens_exceeded", "the model's answer was cut at its limit of tokens")
            if not reply.tool_calls:
                return StopReason.END_TURN
            returns = await asyncio.gather(*(self._call_tool(run, call) for call in reply.tool_calls))
            self._append_returns(run, reply.tool_calls, returns, step_id)
        return StopReason.MAX_STEPS if run.messages else StopReason.END_TURN

    def _max_steps(self, run: Run) -> int:
        asked = run.request.max_steps
        return self._agent.max_steps if asked is None else min(self._agent.max_steps, asked)

    async def _ask(self, run: Run) -> ModelReply:
        call = ModelCall(
            model=self._agent.model_name,
            messages=run.conversation,
            system=run.request.override_system or self._agent.system,
            tools=self._specs,
            body=self._agent.request_body,
            deadline=run.deadline,
        )
        reply = await self._client.ask(call)
        if run.first_token_ns is None:
            run.first_token_ns = reply.first_token_ns
        run.usage += reply.usage + Usage(step_count=1)
        return reply

    def _append_reply(self, run: Run, reply: ModelReply, step_id: str) -> None:
        run.append(
            role="assistant",
            model=self._agent.model,
            content=list(reply.content),
            tool_calls=list(reply.tool_calls) or None,
            step_id=step_id,
        )

    def _append_returns(
        self, run: Run, calls: Sequence[ToolCall], returns: Sequence[MessageToolReturn], step_id: str
    ) -> None:
        run.append(
            role="tool",
            model=self._agent.model,
            name=calls[0].name,
            tool_call_id=calls[0].id,
            content=[TextContent(text=each.func_response or "") for each in returns],
            tool_returns=list(returns),
            step_id=step_id,
        )

    async def _call_tool(self, run: Run, call: ToolCall) -> MessageToolReturn:
        tool = self._tools.get(call.name)
        try:
            if tool is None:
                raise ToolError(f"there is no tool {call.name!r}; there are: {', '.join(self._tools) or 'none'}")
            arguments = orjson.loads(call.arguments or "{}")
            with run.executing():
                text, status = await tool.call(arguments), "success"
        except orjson.JSONDecodeError as error:
            text, status = f"the arguments of {call.name} are not JSON: {error}", "error"
        except ToolError as error:
            text, status = str(error), "error"
        return MessageToolReturn(tool_call_id=call.id, status=status, func_response=text, stdout=[], stderr=[])
