"""Tool calls that wait for the caller, and the caller's answers to them.

A paused step is stored as two messages: the model's reply with the calls that need no approval, and an approval request
with the calls that wait.  No call of the step runs before all waiting ones are answered.
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
"""The caller's answer to one tool call: an approval or a denial, or the return of the caller's own tool."""


class PausedStep(NamedTuple):
    """A step that waits for the caller: all its calls in order, and the ids of those that need an answer.

    `request_id` is the id of its approval request.
    """

    calls: Sequence[ToolCall]
    waiting: frozenset[str]
    request_id: str
    step_id: str | None


def has_answers(request: LettaRequest) -> bool:
    """Whether a request answers tool calls instead of sending messages."""
    return request.messages is not None and any(not isinstance(each, MessageCreate) for each in request.messages)


def read_answers(request: LettaRequest) -> list[ApprovalAnswer]:
    """Return the answers in a request.

    Raises ApprovalError if the request also has other messages, has no answer, or has two answers to one call.
    """
    answers: list[ApprovalAnswer] = []
    for position, message in enumerate(request.messages or ()):
        if isinstance(message, MessageCreate):
            reason = "a request either answers tool calls or sends messages; send the messages afterwards"
            raise ApprovalError("mixed_messages", f"messages[{position}]: {reason}")
        answers += _listed_answers(message)
    if not answers:
        raise ApprovalError("no_pending_approval", "the approval names no tool call; give `approvals`")
    ids = [answer.tool_call_id for answer in answers]
    if twice := next((call_id for call_id in ids if ids.count(call_id) > 1), None):
        raise ApprovalError("already_answered", f"two answers to the tool call {twice!r}")
    return answers


def paused_step(history: Sequence[Message]) -> PausedStep | None:
    """Return the paused step at the end of a conversation, or None."""
    if not history or history[-1].role != "approval" or not history[-1].tool_calls:
        return None
    request, calls = history[-1], list(history[-1].tool_calls)
    waiting = frozenset(call.id for call in calls)
    if len(history) > 1 and _is_first_half(history[-2], request):
        calls = [*(history[-2].tool_calls or ()), *calls]
    return PausedStep(calls, waiting, request.id, request.step_id)


def answers_by_call(answers: Iterable[ApprovalAnswer], step: PausedStep) -> dict[str, ApprovalAnswer]:
    """Return the answers by tool call id.  An answer to the approval request itself applies to each of its calls.

    Raises ApprovalError unless exactly the waiting calls are answered.
    """
    given = {answer.tool_call_id: answer for answer in answers}
    if step.request_id in given and len(given) == 1:
        return dict.fromkeys(step.waiting, given[step.request_id])
    check_all_answered(given.keys(), step.waiting)
    return given


def approvals_field(given: ApprovalCreate | ToolReturnCreate) -> list[ApprovalReturn | MessageToolReturn]:
    """Return answers in the form of a message's `approvals`."""
    return [
        answer if isinstance(answer, ApprovalReturn) else tool_return_message(answer, answer.tool_call_id)
        for answer in _listed_answers(given)
    ]


def tool_return_message(answer: ToolReturn, call_id: str) -> MessageToolReturn:
    """Return the result of the caller's own tool in the form of our tools' results.  An image becomes `[image]`."""
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
    """Whether a tool return holds an image; no supported protocol can carry one there."""
    return not isinstance(answer.tool_return, str) and any(isinstance(p, ImageContent) for p in answer.tool_return)


def denial_message(answer: ApprovalReturn, call_id: str) -> MessageToolReturn:
    """Return the result that the model sees for a call that the caller denied."""
    text = f"The call was denied: {answer.reason}" if answer.reason else "The call was denied."
    return MessageToolReturn(tool_call_id=call_id, status="error", func_response=text, stdout=[], stderr=[])


def model_view(messages: Iterable[Message]) -> list[Message]:
    """Return a stored conversation as models see it: a paused step becomes one reply, followed by its returns."""
    view: list[Message] = []
    for message in messages:
        if message.role != "approval":
            view.append(message)
        elif message.tool_calls and view and _is_first_half(view[-1], message):
            calls = [*(view[-1].tool_calls or ()), *message.tool_calls]
            view[-1] = view[-1].model_copy(update={"tool_calls": calls})
        elif message.tool_calls:
            view.append(message)
        # The caller's answers are left out: the tool message that follows holds their effect.
    return view


def _is_first_half(message: Message, request: Message) -> bool:
    return message.role == "assistant" and message.step_id is not None and message.step_id == request.step_id


def _listed_answers(given: object) -> list[ApprovalAnswer]:
    if isinstance(given, ApprovalCreate):
        return list(given.approvals or ())
    return list(given.tool_returns) if isinstance(given, ToolReturnCreate) else []
