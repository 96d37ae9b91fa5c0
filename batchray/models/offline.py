"""Offline models: stand-ins without a network, for tests and for trying out batchray.  They are not language models.

`offline/scripted` replies what its script contains; `offline/rules` answers a few kinds of questions by fixed rules.
Both are deterministic.  If the script sets no usage, a token is four characters, rounded up.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from batchray.errors import DeadlineExceededError, InvalidResponseError, InvalidToolCallError, ModelAPIError
from batchray.models.base import ModelCall, ModelClient, ModelReply, reply_parts
from batchray.schema import Message, ToolCall, Usage
from batchray.schema.validation_text import first_problem

END_OF_SCRIPT = "(end of script)"
"""The reply of a scripted model after the last reply of its script."""

_CHARS_PER_TOKEN = 4
_FAILURES = {
    "api_error": ModelAPIError,
    "invalid_response": InvalidResponseError,
    "invalid_tool_call": InvalidToolCallError,
}


class OfflineModels:
    """The client of the provider `offline`."""

    def __init__(self) -> None:
        self._models: dict[str, ModelClient] = {"rules": RulesModel(), "scripted": ScriptedModel()}

    async def ask(self, call: ModelCall) -> ModelReply:
        """Call the model that `call` names.  Raises ModelAPIError (`not_found`) for an unknown one."""
        model = self._models.get(call.model)
        if model is None:
            raise ModelAPIError("not_found", f"there is no offline model {call.model!r}; there are: rules, scripted")
        return await model.ask(call)

    async def close(self) -> None:
        """Nothing to close."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _ScriptedCall(_Strict):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class _Failure(_Strict):
    type: Literal["api_error", "invalid_response", "invalid_tool_call"]
    message: str = "a scripted failure"


class _ScriptedUsage(Usage):
    model_config = ConfigDict(extra="forbid")

    def filled(self) -> Usage:
        total = self.total_tokens or self.prompt_tokens + self.completion_tokens
        return Usage(**{**self.model_dump(), "total_tokens": total})


class _ScriptedReply(_Strict):
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[_ScriptedCall, ...] = ()
    delay_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    fail: _Failure | None = None
    usage: _ScriptedUsage | None = None


_SCRIPT = TypeAdapter(tuple[_ScriptedReply, ...])


class ScriptedModel:
    """Gives the replies of a script, one per model call since the last user message, then END_OF_SCRIPT.

    The script comes from the last user message, if its text is a JSON object with a key `script`; else from `script` in
    the agent's file (`call.body`); else from the constructor.  An entry may hold `text`, `reasoning`, `tool_calls`
    (`[{name, arguments}]`), `delay_s` before the reply, `usage`, and `fail`
    (`{type: api_error | invalid_response | invalid_tool_call, message}`) to raise instead, which still costs `usage`.
    `reasoning` is left out if the call switches thinking off.
    `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        script: Sequence[Mapping[str, Any]] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._script, self._clock, self._sleep = script, clock, sleep

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the next reply of the script, after its delay.

        Raises the error that `fail` names, InvalidResponseError (`bad_script`) for an invalid script, and
        DeadlineExceededError if the delay reaches the call's deadline.
        """
        script_entries = _read_script(self._find_script(call))
        n_answered = sum(_is_from_model(message) for message in _since_user(call.messages))
        entry = script_entries[n_answered] if n_answered < len(script_entries) else _ScriptedReply(text=END_OF_SCRIPT)
        await self._wait(entry.delay_s, call.deadline)
        usage = entry.usage.filled() if entry.usage else None
        if entry.fail is not None:
            call.on_wasted_usage(usage or Usage())
            raise _FAILURES[entry.fail.type](entry.fail.type, entry.fail.message)
        asked = [(each.name, each.arguments) for each in entry.tool_calls]
        reasoning = "" if call.thinking is False else entry.reasoning
        return _reply(call, self._clock, entry.text, asked, reasoning, usage)

    async def close(self) -> None:
        """Nothing to close."""

    def _find_script(self, call: ModelCall) -> Any:
        text = _last_user_text(call.messages)
        if text.lstrip().startswith("{"):
            try:
                content = orjson.loads(text)
            except orjson.JSONDecodeError:
                content = {}
            if "script" in content:
                return content["script"]
        script = call.body.get("script", self._script)
        if script is None:
            reason = 'no script: give the agent one, or send a user message with the text {"script": [...]}'
            raise InvalidResponseError("bad_script", reason)
        return script

    async def _wait(self, delay_s: float, deadline: float) -> None:
        left_s = deadline - self._clock()
        if delay_s > 0 and left_s > 0:
            await self._sleep(min(delay_s, left_s))
        if delay_s >= left_s:
            raise DeadlineExceededError("deadline_exceeded", "offline/scripted: no answer before the deadline")


class RulesModel:
    """Replies by fixed rules, and calls tools of these names if the call offers them.

    `calculate(expression)` for each arithmetic expression in the last user message; `count_words(text)` for
    "How many words: ..."; `look_up(key)` for each line "Look up: ...".  All calls for a message are made at once, and
    the reply has one line per result.  Any other text is repeated, with its number of words.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return tool calls, or else the reply.  Raises DeadlineExceededError if the call's deadline has passed."""
        if self._clock() >= call.deadline:
            raise DeadlineExceededError("deadline_exceeded", "offline/rules: the deadline has passed")
        since = _since_user(call.messages)
        asked = [each for message in since if _is_from_model(message) for each in message.tool_calls or ()]
        if asked:
            returns = _returns(since)
            lines = [_result_line(each, *returns.get(each.id, ("error", "the tool gave no answer"))) for each in asked]
            return _reply(call, self._clock, "\n".join(lines))
        text = _last_user_text(call.messages)
        wanted = list(_wanted_calls(text, {tool.name for tool in call.tools}))
        n_words = len(text.split())
        echo = f"You wrote {n_words} word{'s' * (n_words != 1)}{': ' if n_words else '.'}{text.strip()}"
        return _reply(call, self._clock, "" if wanted else echo, wanted)

    async def close(self) -> None:
        """Nothing to close."""


def _read_script(script: Any) -> tuple[_ScriptedReply, ...]:
    try:
        return _SCRIPT.validate_python(script)
    except ValidationError as error:
        raise InvalidResponseError("bad_script", first_problem(error, _ScriptedReply, "script")) from None


def _is_from_model(message: Message) -> bool:
    return message.role == "assistant" or (message.role == "approval" and bool(message.tool_calls))


def _since_user(messages: Sequence[Message]) -> Sequence[Message]:
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    return messages[last + 1 :]


def _last_user_text(messages: Sequence[Message]) -> str:
    return next((message.text for message in reversed(messages) if message.role == "user"), "")


def _reply(
    call: ModelCall,
    clock: Callable[[], float],
    text: str,
    asked: Sequence[tuple[str, Mapping[str, Any]]] = (),
    reasoning: str = "",
    usage: Usage | None = None,
) -> ModelReply:
    calls = [_tool_call(call, i, name, arguments) for i, (name, arguments) in enumerate(asked)]
    return ModelReply(
        content=reply_parts(text, reasoning),
        tool_calls=calls,
        finish_reason="tool_calls" if calls else "stop",
        usage=usage or _counted_usage(call, text, reasoning, calls),
        first_token_ns=int(clock() * 1e9),
    )


def _tool_call(call: ModelCall, i: int, name: str, arguments: Mapping[str, Any]) -> ToolCall:
    # The id is the same each time for a given call, and unique within the conversation.
    made_of = f"{len(call.messages)} {call.messages[-1].id if call.messages else ''} {i} {name}"
    return ToolCall.of(
        f"call_{hashlib.sha256(made_of.encode()).hexdigest()[:24]}", name, orjson.dumps(arguments).decode()
    )


def _counted_usage(call: ModelCall, text: str, reasoning: str, calls: Sequence[ToolCall]) -> Usage:
    prompt = _n_tokens(call.system or "", *(piece for message in call.messages for piece in _texts(message)))
    thought = _n_tokens(reasoning)
    completion = thought + _n_tokens(text, *(each.name + each.arguments for each in calls))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        reasoning_tokens=thought,
    )


def _n_tokens(*texts: str) -> int:
    return -(-sum(map(len, texts)) // _CHARS_PER_TOKEN)


def _texts(message: Message) -> Iterator[str]:
    returns = message.tool_returns or ()
    if not returns:  # the content repeats them
        yield message.text
    yield from (each.func_response or "" for each in returns)
    yield from (each.name + each.arguments for each in message.tool_calls or ())


_OPERAND = r"(?:\(\s{0,4}){0,8}-?\d+(?:\.\d+)?(?:\s{0,4}\)){0,8}"
# Every part except the digits is bounded, and no match begins inside a number: linear time on any text.
_EXPRESSION = re.compile(rf"(?<![\w.)]){_OPERAND}(?:\s{{0,4}}(?:\*\*|//|[-+*/×÷%^])\s{{0,4}}{_OPERAND})+", re.ASCII)
_COUNT_WORDS = re.compile(r"\bhow many words\b[^:\n]{0,200}:\s*(.+)", re.IGNORECASE | re.DOTALL)
_LOOK_UP = re.compile(r"\blook up:[ \t]*([^\n]+)", re.IGNORECASE)


def _wanted_calls(text: str, tools: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the tool calls that a text asks for.  Text matched by one rule is not read by the next."""
    if "count_words" in tools and (found := _COUNT_WORDS.search(text)):
        yield "count_words", {"text": found[1].strip()}
        text = text[: found.start()]
    if "look_up" in tools:
        yield from (("look_up", {"key": key.strip()}) for key in _LOOK_UP.findall(text))
        text = _LOOK_UP.sub("", text)
    if "calculate" in tools:
        yield from (("calculate", {"expression": each}) for each in _expressions(text))


def _expressions(text: str) -> Iterator[str]:
    for found in _EXPRESSION.finditer(text):
        expression = found[0].replace("×", "*").replace("÷", "/")
        opening, closing = expression.count("("), expression.count(")")
        if closing > opening:  # brackets of the surrounding sentence
            expression = expression[: -(closing - opening)].rstrip()
        elif opening > closing and expression.startswith("(" * (opening - closing)):
            expression = expression[opening - closing :].lstrip()
        if expression.count("(") == expression.count(")"):
            yield expression


def _returns(messages: Sequence[Message]) -> dict[str, tuple[str, str]]:
    """Return the tool returns: tool call id -> (status, text)."""
    returns: dict[str, tuple[str, str]] = {}
    for message in messages:
        for each in message.tool_returns or ():
            returns[each.tool_call_id or message.tool_call_id or ""] = (each.status, each.func_response or "")
        if message.role == "tool" and not message.tool_returns:
            returns[message.tool_call_id or ""] = ("error" if message.is_err else "success", message.text)
    return returns


def _result_line(asked: ToolCall, status: str, value: str) -> str:
    if status == "error":
        return f"I could not work that out: {value}"
    arguments = orjson.loads(asked.arguments)
    if asked.name == "calculate":
        return f"{arguments.get('expression')} = {value}"
    if asked.name == "count_words":
        return f"That is {value} word{'s' * (value != '1')}."
    return f"{arguments.get('key', asked.name)}: {value}"
