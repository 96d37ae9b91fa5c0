"""A result as a conversation: the turns that a notebook and a terminal show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeVar

import orjson

from batchray.schema import (
    ApprovalRequestMessage,
    ApprovalResponseMessage,
    AssistantMessage,
    HiddenReasoningMessage,
    LettaMessage,
    LettaToolCall,
    ReasoningMessage,
    Result,
    SystemMessage,
    ToolCallMessage,
    ToolReturnMessage,
    UserMessage,
)
from batchray.views.plain_text import clipped
from batchray.views.summary import duration

T = TypeVar("T")

Kind = Literal["system", "user", "assistant", "reasoning", "tool", "approval", "output", "error"]

_N_FIRST, _N_LAST = 60, 40


class Detail(NamedTuple):
    """A named text inside a turn, such as the arguments of a tool call."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """Something that was said or done.  `title` says by whom, or which tool was called; `note` how it ended."""

    kind: Kind
    title: str
    text: str = ""
    note: str = ""
    details: tuple[Detail, ...] = ()
    is_failed: bool = False


@dataclass(slots=True)
class _TurnBuilder:
    """The turns so far, and where the calls without a return are among them, by the ids of the calls."""

    turns: list[Turn] = field(default_factory=list)
    open_calls: dict[str, int] = field(default_factory=dict)

    def add_calls(self, calls: Iterable[LettaToolCall], note: str) -> None:
        for call in calls:
            self.open_calls[call.tool_call_id or ""] = len(self.turns)
            details = (Detail("arguments", _indented(call.arguments or "")),)
            self.turns.append(Turn("tool", call.name or "unnamed tool", note=note, details=details))

    def add_return(self, returned: Any) -> None:
        """Add a return to its call.  One without a call, whose call is not among the messages, is a turn of its own."""
        text = _text_of(returned.tool_return)
        streams = ((name, "".join(getattr(returned, name) or ())) for name in ("stdout", "stderr"))
        details = (Detail("return", text), *(Detail(name, written) for name, written in streams if written))
        position = self.open_calls.pop(returned.tool_call_id or "", None)
        call = Turn("tool", f"return of {returned.tool_call_id}") if position is None else self.turns[position]
        done = replace(
            call, note=returned.status, details=(*call.details, *details), is_failed=returned.status == "error"
        )
        if position is None:
            self.turns.append(done)
        else:
            self.turns[position] = done


def read_turns(result: Result) -> list[Turn]:
    """Return the turns of a result in their order, each tool call with its return.

    The input is among them if the result has it.  At the end are the output of a function agent, and the error.
    """
    found = _TurnBuilder(list(_input_turns(result.input)))
    for message in result.messages:
        _add(found, message)
    return [*found.turns, *_end_turns(result)]


def shown_turns(turns: Sequence[T], is_full: bool = False) -> tuple[Sequence[T], int, Sequence[T]]:
    """Return the first turns, how many are left out, and the last turns."""
    if is_full or len(turns) <= _N_FIRST + _N_LAST:
        return turns, 0, ()
    return turns[:_N_FIRST], len(turns) - _N_FIRST - _N_LAST, turns[-_N_LAST:]


def headline(result: Result) -> str:
    """Return which request it is, who answered, and how it ended."""
    named = "" if result.custom_id is None else f" {clipped(str(result.custom_id), 100)}"
    model = f" ({result.model})" if result.model else ""
    stop = "" if result.stop_reason in ("end_turn", "error") else f", {result.stop_reason}"
    return f"request {result.index:,}{named}, agent {clipped(result.agent_id, 100)}{model}: {result.status}{stop}"


def figures(result: Result) -> str:
    """Return usage, cost and timing as one line."""
    usage, timing = result.usage, result.timing
    parts = [
        _counted(usage.step_count, "step"),
        f"{usage.prompt_tokens:,} tokens in{_share_of('cached', usage.cached_input_tokens)}",
        f"{usage.completion_tokens:,} out{_share_of('reasoning', usage.reasoning_tokens)}",
        duration(timing.duration_ns / 1e9),
    ]
    if timing.ttft_ns is not None:
        parts.append(f"first token after {duration(timing.ttft_ns / 1e9)}")
    parts += [f"queued {duration(timing.queued_ns / 1e9)}", _counted(result.attempts, "attempt")]
    if result.cost_usd is not None:
        parts.append(dollars(result.cost_usd))
    return ", ".join(parts)


def dollars(amount: float) -> str:
    """Return an amount of US dollars, with enough digits for a single request."""
    return f"${amount:,.2f}" if amount >= 1 or amount == 0 else f"${amount:.3g}" if amount >= 1e-4 else f"${amount:.1e}"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _share_of(name: str, n: int) -> str:
    return f" ({n:,} {name})" if n else ""


def _add(found: _TurnBuilder, message: LettaMessage) -> None:
    match message:
        case AssistantMessage(content=content):
            found.turns.append(Turn("assistant", "assistant", _text_of(content)))
        case UserMessage(content=content):
            found.turns.append(Turn("user", "user", _text_of(content)))
        case SystemMessage(content=content):
            found.turns.append(Turn("system", "system", content))
        case ReasoningMessage(reasoning=reasoning):
            found.turns.append(Turn("reasoning", "reasoning", reasoning))
        case HiddenReasoningMessage(state=state):
            found.turns.append(Turn("reasoning", "reasoning", f"[{state} by the provider]"))
        case ToolCallMessage():
            found.add_calls(_calls_of(message), "no return")
        case ApprovalRequestMessage():
            found.add_calls(_calls_of(message), "waits for approval")
        case ToolReturnMessage():
            for returned in message.tool_returns or (message,):
                found.add_return(returned)
        case ApprovalResponseMessage():
            answers = [each.model_dump(mode="json", exclude_none=True) for each in message.approvals or ()]
            found.turns.append(Turn("approval", "approval", _as_json(answers)))
        case _:
            found.turns.append(Turn("system", str(message.message_type), _as_json(message.model_dump(mode="json"))))


def _calls_of(message: ToolCallMessage | ApprovalRequestMessage) -> list[LettaToolCall]:
    calls = message.tool_calls
    return calls if isinstance(calls, list) else [calls or message.tool_call]


def _input_turns(given: str | list[Any] | None) -> Iterator[Turn]:
    """Yield the turns of a request's input: a text, parts of one message, or messages."""
    if given is None:
        return
    if isinstance(given, str):
        yield Turn("user", "user", given)
        return
    for is_message, parts in groupby(given, key=lambda part: isinstance(part, dict) and _is_message(part)):
        if is_message:
            yield from map(_input_turn, parts)
        else:
            yield Turn("user", "user", _text_of(parts))


def _is_message(part: dict[str, Any]) -> bool:
    return "role" in part or part.get("type") == "approval"


def _input_turn(message: dict[str, Any]) -> Turn:
    match message.get("role"):
        case None:
            return Turn("approval", "approval", _as_json(message.get("approvals") or message))
        case ("system" | "assistant") as role:
            return Turn(role, role, _text_of(message.get("content")))
        case role:
            return Turn("user", str(role), _text_of(message.get("content")))


def _end_turns(result: Result) -> Iterator[Turn]:
    streams = (Detail(name, text) for name, text in (("stdout", result.stdout), ("stderr", result.stderr)) if text)
    if details := tuple(streams):
        yield Turn("output", "output of the function", details=details)
    if (error := result.error) is not None:
        details = (Detail("traceback", error.traceback),) if error.traceback else ()
        yield Turn("error", error.type, error.message, details=details, is_failed=True)


def _text_of(content: Any) -> str:
    """Return content as text: parts that are not text are named."""
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part) for part in content or ())


def _part_text(part: Any) -> str:
    fields = part if isinstance(part, dict) else part.model_dump(mode="json") if hasattr(part, "model_dump") else {}
    match fields:
        case {"text": str(text)}:
            return text
        case {"source": {"type": "url", "url": str(url)}}:
            return f"[image {clipped(url, 200)}]"
        case {"type": "image", "source": {**source}}:
            return f"[image {source.get('media_type') or source.get('file_id') or ''}]"
        case _:
            return part if isinstance(part, str) else _as_json(fields or part)


def _indented(text: str) -> str:
    """Return JSON on several lines; a text that is not JSON, or is short, as it is."""
    try:
        return text if len(text) <= 60 else orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
    except ValueError:
        return text


def _as_json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()
