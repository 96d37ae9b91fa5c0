"""The tool loop: call the model, run the tools that it asks for, repeat until it ends its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from batchray.agents.approvals import (
    PausedStep,
    answers_by_call,
    denial_message,
    has_image,
    paused_step,
    read_answers,
    tool_return_message,
)
from batchray.agents.arguments import BadArgumentsError, read_arguments
from batchray.agents.base import Run
from batchray.agents.budget import check_budget
from batchray.agents.failures import traceback_of
from batchray.agents.memory import RunMemory
from batchray.agents.toolbox import Toolbox
from batchray.agents.tools import FunctionTool, ToolError
from batchray.agents.user_code import UserCodeError
from batchray.config import Agent
from batchray.errors import ApprovalError, NoToolCallError
from batchray.models import ModelCall, ModelClient, ModelReply, cut_error
from batchray.models.reply_cache import ReplyCache
from batchray.schema import (
    ApprovalReturn,
    MessageToolReturn,
    StopReason,
    TextContent,
    ToolCall,
    ToolReturn,
    Usage,
)
from batchray.support.captured_output import CapturedOutput


class ToolLoop:
    """An agent with a model, a system prompt, tools, and optionally memory.

    `memory_tools` come from `memory_tools(agent.memory_blocks)`.  Raises ConfigError if the agent's settings name a
    tool that it does not have.  `cache` has the replies of earlier calls; None asks the model always.
    """

    def __init__(
        self,
        agent: Agent,
        client: ModelClient,
        tools: Mapping[str, FunctionTool],
        memory_tools: Mapping[str, FunctionTool] | None = None,
        cache: ReplyCache | None = None,
    ) -> None:
        self._agent, self._client, self._cache = agent, client, cache
        self._memory_tools = memory_tools or {}
        self._toolbox = Toolbox.of(agent, {**tools, **self._memory_tools})

    async def run(self, run: Run) -> StopReason:
        """Take steps until the model ends its turn, or a limit or a paused step ends the run.

        A request that answers tool calls continues with the step that waits for them.
        """
        if self._agent.memory_blocks:
            blocks = self._agent.memory_blocks if run.stored_blocks is None else run.stored_blocks
            run.memory = RunMemory(blocks, run.edited_memory, run.memory_bases)
        tools = self._tools_of(run)
        stop_reason = await self._finish_open_step(run, tools)
        while stop_reason is None and run.usage.step_count < self._max_steps(run):
            stop_reason = await self._step(run, tools)
        return stop_reason or (StopReason.MAX_STEPS if run.messages else StopReason.END_TURN)

    def _tools_of(self, run: Run) -> Toolbox:
        tools = self._toolbox
        if self._memory_tools:
            tools = tools.with_memory(run.memory, self._memory_tools)
        if run.request.client_tools:
            tools = tools.with_client_tools(run.request.client_tools)
        return tools

    def _max_steps(self, run: Run) -> int:
        asked = run.request.max_steps
        return self._agent.max_steps if asked is None else min(self._agent.max_steps, asked)

    async def _finish_open_step(self, run: Run, tools: Toolbox) -> StopReason | None:
        """Finish an unfinished step: one that an earlier attempt left behind, or one that waits for the caller."""
        if not run.messages:
            return await self._resume_paused_step(run, tools) if run.has_answers else None
        last = run.messages[-1]
        if not last.tool_calls:
            return None
        return await self._run_tools(run, tools, last.tool_calls, last.step_id or run.next_step_id())

    async def _step(self, run: Run, tools: Toolbox) -> StopReason | None:
        """Call the model and run the tools that it asks for; return the stop reason if the run ends with this step."""
        reply, step_id = await self._ask(run, tools), run.next_step_id()
        waiting = [call for call in reply.tool_calls if call.name in tools.waiting]
        if waiting and not reply.is_cut:
            self._append_request(run, reply, waiting, step_id)
            return StopReason.REQUIRES_APPROVAL
        self._append_reply(run, reply, reply.tool_calls, step_id)
        if reply.is_cut:
            raise cut_error(reply)
        if not reply.tool_calls:
            return self._end_turn(run)
        check_budget(self._agent, run.usage)
        if tools.are_idempotent(reply.tool_calls):
            await run.flush()  # of the steps before: at most one step that is not saved yet has run
        run.save_checkpoint()
        return await self._run_tools(run, tools, reply.tool_calls, step_id)

    async def _run_tools(self, run: Run, tools: Toolbox, calls: Sequence[ToolCall], step_id: str) -> StopReason | None:
        """Run the tools of a step once its calls are saved: another attempt then continues from here.

        Idempotent tools start before that.  The model gets the returns when the calls are saved; if all tools of the
        step are idempotent, it gets them at once, and the step is saved during the next model call.
        """
        starts = (self._call_once if tools.is_idempotent(call.name) else self._call_saved for call in calls)
        returns = await asyncio.gather(*(start(run, tools, call) for start, call in zip(starts, calls, strict=True)))
        return self._finish_step(run, tools, calls, returns, step_id)

    async def _resume_paused_step(self, run: Run, tools: Toolbox) -> StopReason | None:
        """Finish the paused step with the caller's answers."""
        step = paused_step(run.history)
        if step is None:
            raise ApprovalError("no_pending_approval", "no tool call waits for an answer")
        answers = answers_by_call(read_answers(run.request), step)
        for call in step.calls:
            _check_answer(call, answers.get(call.id), tools)
        returns = await asyncio.gather(
            *(self._apply_answer(run, tools, step, call, answers.get(call.id)) for call in step.calls)
        )
        return self._finish_step(run, tools, step.calls, returns, step.step_id or run.next_step_id())

    async def _apply_answer(
        self, run: Run, tools: Toolbox, step: PausedStep, call: ToolCall, answer: ApprovalReturn | ToolReturn | None
    ) -> MessageToolReturn:
        if isinstance(answer, ToolReturn):
            return tool_return_message(answer, call.id)
        if answer is not None and not answer.approve:
            return denial_message(answer, call.id)
        return await self._call_once(run, tools, call)

    def _end_turn(self, run: Run) -> StopReason:
        if self._agent.requires_tool and not any(message.role == "tool" for message in run.messages):
            raise NoToolCallError("no_tool_call", "the model answered without a tool call, which its agent requires")
        return StopReason.END_TURN

    def _finish_step(
        self,
        run: Run,
        tools: Toolbox,
        calls: Sequence[ToolCall],
        returns: Sequence[MessageToolReturn],
        step_id: str,
    ) -> StopReason | None:
        run.append(
            role="tool",
            model=self._agent.model,
            name=calls[0].name,
            tool_call_id=calls[0].id,
            content=[TextContent(text=each.func_response or "") for each in returns],
            tool_returns=list(returns),
            step_id=step_id,
        )
        run.returned = {}
        succeeded = (call.name for call, each in zip(calls, returns, strict=True) if each.status == "success")
        return StopReason.TOOL_RULE if not tools.terminal.isdisjoint(succeeded) else None

    async def _ask(self, run: Run, tools: Toolbox) -> ModelReply:
        call = ModelCall(
            model=self._agent.model_name,
            messages=run.conversation,
            system=self._system(run),
            tools=tools.specs,
            body=self._agent.request_body,
            settings=run.request.settings.given if run.request.settings is not None else {},
            deadline=run.deadline,
            thinking=self._thinking(run),
            on_wasted_usage=run.add_usage,
            while_held=run.held,
            cache=self._cache.for_call(run.repeat) if self._cache is not None else None,
            written=run.written,
        )
        reply = await self._client.ask(call)
        if call.cache is not None and not reply.is_cut:
            await call.cache.keep()
        if run.first_token_ns is None:
            run.first_token_ns = reply.first_token_ns
        run.add_usage(reply.usage + Usage(step_count=1))
        return reply

    def _thinking(self, run: Run) -> bool | None:
        asked = run.request.thinking
        return self._agent.enable_thinking if asked is None else asked

    def _system(self, run: Run) -> str | None:
        asked = run.request.override_system
        system = self._agent.system if asked is None else asked
        if not self._agent.memory_blocks:
            return system
        return "\n\n".join(filter(None, (system, run.memory.prompt())))

    def _append_reply(self, run: Run, reply: ModelReply, calls: Sequence[ToolCall], step_id: str) -> None:
        run.append(
            role="assistant",
            model=self._agent.model,
            content=list(reply.content),
            tool_calls=list(calls) or None,
            step_id=step_id,
            **({"provider_items": list(reply.items)} if self._goes_back(reply) else {}),
        )

    def _goes_back(self, reply: ModelReply) -> bool:
        """Whether the provider wants the reply's items back in a later call."""
        return bool(reply.items) and bool(reply.tool_calls or self._agent.stateful)

    def _append_request(self, run: Run, reply: ModelReply, waiting: Sequence[ToolCall], step_id: str) -> None:
        """Append the reply with the calls that need no approval, then the approval request for the calls that wait."""
        others = [call for call in reply.tool_calls if call not in waiting]
        if reply.content or others or reply.items:
            self._append_reply(run, reply, others, step_id)
        run.append(role="approval", model=self._agent.model, content=[], tool_calls=list(waiting), step_id=step_id)
        run.pending = tuple(call.id for call in waiting)

    async def _call_saved(self, run: Run, tools: Toolbox, call: ToolCall) -> MessageToolReturn:
        """Run a tool call once it is saved."""
        await run.flush()
        return await self._call_once(run, tools, call)

    async def _call_once(self, run: Run, tools: Toolbox, call: ToolCall) -> MessageToolReturn:
        """Run a tool call, unless an earlier attempt saved its return."""
        if (returned := run.returned.get(call.id)) is not None:
            return returned
        returned = await self._call_tool(run, tools, call)
        run.save_checkpoint(returned)
        return returned

    async def _call_tool(self, run: Run, tools: Toolbox, call: ToolCall) -> MessageToolReturn:
        """Run a tool call.  A mistake of the model and an error of the tool are its return: the model reads them."""
        tool, output = tools.tools.get(call.name), CapturedOutput()
        try:
            if tool is None:
                raise ToolError(f"there is no tool {call.name!r}; there are: {tools.names}")
            given = read_arguments(call.arguments)
            with run.executing():
                text = await tool.call(given.values, output, given.rounded)
        except BadArgumentsError as error:
            return run.tool_return("error", f"the arguments of {call.name} {error}", call.id, output)
        except ToolError as error:
            if isinstance(error.__cause__, UserCodeError):
                output.write("stderr", traceback_of(error.__cause__.raised, run.masks))
            return run.tool_return("error", run.masks.clean(str(error)), call.id, output)
        return run.tool_return("success", text, call.id, output)


def _check_answer(call: ToolCall, answer: ApprovalReturn | ToolReturn | None, tools: Toolbox) -> None:
    """Raise ApprovalError for an answer that cannot be used, before any tool of the step runs."""
    if isinstance(answer, ToolReturn) and has_image(answer):
        reason = f"the return of the tool call {call.id!r} holds an image; only text can be returned"
        raise ApprovalError("unsupported_content", reason)
    is_client_side = call.name in tools.client_side or call.name not in tools.tools
    if isinstance(answer, ApprovalReturn) and answer.approve and is_client_side:
        reason = f"{call.name!r} is the caller's own tool; answer its call {call.id!r} with the tool's return"
        raise ApprovalError("tool_return_needed", reason)
