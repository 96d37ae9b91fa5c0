"""What a request's caller is shown of its messages."""

from __future__ import annotations

from collections.abc import Iterable

from batchray.schema.messages import LettaMessage, Message, ToolCall, is_spoken, letta_messages, of_types
from batchray.schema.requests import LettaRequest


def visible_messages(messages: Iterable[Message], request: LettaRequest) -> list[LettaMessage]:
    """Return messages as LettaMessages, as far as the request asks for their types.

    Where it asks for a tool to be shown as the assistant's voice, what that tool gave back is left out.
    """
    tool_name, kwarg = request.assistant_message_tool, request.assistant_message_tool_kwarg
    if tool_name is None:
        return _shown(messages, request)
    messages = list(messages)
    calls: list[ToolCall] = [call for message in messages for call in message.tool_calls or ()]
    spoken = {call.id for call in calls if call.name == tool_name and is_spoken(call, kwarg)}
    return _shown((_without_returns(message, spoken) for message in messages), request)


def _shown(messages: Iterable[Message], request: LettaRequest) -> list[LettaMessage]:
    tool_name, kwarg = request.assistant_message_tool, request.assistant_message_tool_kwarg
    views = [view for message in messages for view in letta_messages(message, tool_name, kwarg)]
    return of_types(views, request.include_return_message_types)


def _without_returns(message: Message, call_ids: set[str]) -> Message:
    returns = message.tool_returns or []
    kept = [each for each in returns if each.tool_call_id not in call_ids]
    return message if len(kept) == len(returns) else message.model_copy(update={"tool_returns": kept})
