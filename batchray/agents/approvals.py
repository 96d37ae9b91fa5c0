"""Tool calls that wait for the caller, and the caller's answers to them.

A step that has to wait is two messages: what the model said with the calls that need nobody, and an approval request
with those that wait.  Nothing of the step is run before all that wait are answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from batchray.errors import ApprovalError
from batchray.schema import (
    ApprovalCreate,
    ApprovalReturn,
    ImageContent,
    LettaRequest,
    Message,
    MessageCreate,
    MessageToolReturn,
    ToolCall,
    ToolReturn,
    ToolReturnCreate,
)
from batchray.schema.approvals import check_all_answered

ApprovalAnswer = ApprovalReturn | ToolReturn
"""What the caller says to one tool call: yes or no, or what its own tool gave back."""


class PausedStep(NamedTuple):
    """A step that waits: all its calls in their order, and which of them need an answer.

    `request_id` is the id of its approval request.
    """

    calls: Sequence[ToolCall]
    waiting: frozenset[str]
    request_id: str
    step_id: str | None


def brings_answers(request: LettaRequest) -> bool:
    """Whether a request answers tool calls instead of asking anew."""
    return request.messages is not None and any(not isinstance(each, MessageCreate) for each in request.messages)


def answers_in(request: LettaRequest) -> list[ApprovalAnswer]:
    """Return the answers of a request that brings them.

    Raises ApprovalError where other messages stand beside them, where there are none, or two to one call.
    """
    answers: list[ApprovalAnswer] = []
    for position, given in enumerate(request.messages or ()):
        if isinstance(given, MessageCreate):
            reason = "a request either answers tool calls or brings messages; send the messages afterwards"
            raise ApprovalError("mixed_messages", f"messages[{position}]: {reason}")
        answers += _answers_of(given)
    if not answers:
        raise ApprovalError("no_pending_approval", "the approval names no tool call; give `approvals`")
    ids = [answer.tool_call_id for answer in answers]
    if twice := next((call_id for call_id in ids if ids.count(call_id) > 1), None):
        raise ApprovalError("already_answered", f"two answers to the tool call {twice!r}")
    return answers


def paused_step(history: Sequence[Message]) -> PausedStep | None:
    """Return the step that a conversation stopped at, where it stopped at one."""
    if not history or history[-1].role != "approval" or not history[-1].tool_calls:
        return None
    request, calls = history[-1], list(history[-1].tool_calls)
    waiting = frozenset(call.id for call in calls)
    if len(history) > 1 and _is_first_half(history[-2], request):
        calls = [*(history[-2].tool_calls or ()), *calls]
    return PausedStep(calls, waiting, request.id, request.step_id)


def answers_by_call(answers: Iterable[ApprovalAnswer], step: PausedStep) -> dict[str, ApprovalAnswer]:
    """Return the answers by tool call.  One to the approval request itself is one to each of its calls.

    Raises ApprovalError unless they answer exactly the calls that wait.
    """
    given = {answer.tool_call_id: answer for answer in answers}
    if step.request_id in given and len(given) == 1:
        return dict.fromkeys(step.waiting, given[step.request_id])
    check_all_answered(given.keys(), step.waiting)
    return given


def answered_message(given: ApprovalCreate | ToolReturnCreate) -> list[ApprovalReturn | MessageToolReturn]:
    """Return answers as a message of the conversation holds them."""
    return [
        answer if isinstance(answer, ApprovalReturn) else tool_return_message(answer, answer.tool_call_id)
        for answer in _answers_of(given)
    ]


def tool_return_message(answer: ToolReturn, call_id: str) -> MessageToolReturn:
    """Return what the caller's own tool gave back, as if one of ours had.  An image is only named."""
    parts = answer.tool_return
    text = (
        parts
        if isinstance(parts, str)
        else "\n".join("[image]" if isinstance(p, ImageContent) else p.text for p in parts)
    )
    return MessageToolReturn(
        tool_call_id=call_id, status=answer.status, func_response=text, stdout=answer.stdout, stderr=answer.stderr
    )


def has_image(answer: ToolReturn) -> bool:
    """Whether a return holds an image, which no protocol here has a place for in it."""
    return not isinstance(answer.tool_return, str) and any(isinstance(p, ImageContent) for p in answer.tool_return)


def denial_message(answer: ApprovalReturn, call_id: str) -> MessageToolReturn:
    """Return what the model is told of a call that the caller does not allow."""
    text = f"The call was denied: {answer.reason}" if answer.reason else "The call was denied."
    return MessageToolReturn(tool_call_id=call_id, status="error", func_response=text, stdout=[], stderr=[])


def model_view(messages: Iterable[Message]) -> list[Message]:
    """Return a kept conversation as models see it: a step that waited is one answer, with its returns behind it."""
    spoken: list[Message] = []
    for message in messages:
        if message.role != "approval":
            spoken.append(message)
        elif message.tool_calls and spoken and _is_first_half(spoken[-1], message):
            calls = [*(spoken[-1].tool_calls or ()), *message.tool_calls]
            spoken[-1] = spoken[-1].model_copy(update={"tool_calls": calls})
        elif message.tool_calls:
            spoken.append(message)
        # The caller's answers are in the tool message that follows them.
    return spoken


def _is_first_half(message: Message, request: Message) -> bool:
    return message.role == "assistant" and message.step_id is not None and message.step_id == request.step_id


def _answers_of(given: object) -> list[ApprovalAnswer]:
    if isinstance(given, ApprovalCreate):
        return list(given.approvals or ())
    return list(given.tool_returns) if isinstance(given, ToolReturnCreate) else []
