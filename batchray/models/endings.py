"""How an answer ended: which ends are good, and the error for each other one.

Each protocol lists the ends that it defines; every other word is an error.  A word that servers use for a passing
failure is a TransientError, which the client retries.
Source: the protocols' references, and words that compatible servers send instead (`abort`, `sensitive`, `eos`, ...).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from batchray.errors import InvalidResponseError
from batchray.models.base import ModelReply
from batchray.models.provider_errors import TransientError

FinishReason = Literal["stop", "tool_calls", "length", "context_length"]
"""How a usable answer ended.  `length` and `context_length` are cuts: at a limit of tokens, or of the context."""

CHAT_ENDS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end": "stop",
    "complete": "stop",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "length": "length",
    "max_tokens": "length",
    "model_length": "context_length",
}
"""The ends of a chat completion, as OpenAI, Mistral, Together, TGI and others write them."""

MESSAGE_ENDS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "context_length",
}
"""The ends of an Anthropic message, except `pause_turn` and `refusal`, which its client handles."""

RESPONSE_ENDS: Mapping[str, FinishReason] = {
    "completed": "stop",
    "max_output_tokens": "length",
    "max_tokens": "length",
}
"""The ends of a response of OpenAI's Responses API: its status, or the reason for which it is incomplete."""

_MAX_WORD_CHARS = 80
_REFUSAL = re.compile("content_?filter|sensitive|refus|safety|recitation|prohibited|block|spii|guardrail|moderat")
_CONTEXT = re.compile("context_(window|length)|model_length")
_MALFORMED_CALL = re.compile("malformed_(function|tool)|(function|tool)_call_filter")
_PASSING = re.compile("error|abort|cancel|insufficient_system_resource|interrupt|overload|timeout|unavailable")


def finish_reason(ends: Mapping[str, FinishReason], word: str, provider: str) -> FinishReason:
    """Return how an answer ended, from the provider's word for it; `ends` are the protocol's good ones, in lower case.

    Raises TransientError if another attempt may end well, InvalidResponseError (`refusal` or `unknown_finish_reason`)
    if not.
    """
    known = ends.get(word)
    return known if known is not None else _unlisted(ends, word, provider)


def check_not_empty(
    reason: FinishReason, provider: str, *, has_text: bool, has_calls: bool, has_reasoning: bool = False
) -> None:
    """Raise InvalidResponseError for a complete answer without text and tool calls, or without the calls it announces.

    A cut answer may be empty: its reasoning may have used up the limit.
    """
    if has_calls or reason in ("length", "context_length"):
        return
    if reason == "tool_calls":
        raise InvalidResponseError("no_tool_calls", f"{provider}: the answer announces tool calls, but has none")
    if not has_text:
        what = "an answer with reasoning, but without" if has_reasoning else "an answer without"
        raise InvalidResponseError("no_content", f"{provider}: {what} text or tool calls")


def truncated(what: str = "finish_reason") -> TransientError:
    """Return the error for an answer that the server closed before its end; `what` is the end mark that is missing."""
    return TransientError("stream_truncated", f"the answer ended without a {what}")


def cut_error(reply: ModelReply) -> InvalidResponseError:
    """Return the error for an answer that a limit cut.  It says which limit."""
    n_tokens = reply.usage.completion_tokens
    after = f" after {n_tokens:,} tokens" if n_tokens else ""
    cut = f"the model's answer was cut{after}"
    if reply.finish_reason == "context_length":
        reason = f"{cut}: the conversation and the answer fill the model's context"
        return InvalidResponseError("context_length_exceeded", reason)
    limit = reply.max_tokens
    if limit is None:
        reason = f"{cut} at the provider's limit, or at the end of the model's context; the agent sets no max_tokens"
    elif 0 < n_tokens < limit:
        reason = f"{cut}, before its limit of {limit:,}: the model's context is full, or the provider's limit is lower"
    else:
        reason = f"the model's answer was cut at its token limit: max_tokens is {limit:,}"
    return InvalidResponseError("max_tokens_exceeded", reason)


def _unlisted(ends: Mapping[str, FinishReason], word: str, provider: str) -> FinishReason:
    lower = word.strip().lower()
    if (known := ends.get(lower)) is not None:
        return known
    if _CONTEXT.search(lower):
        return "context_length"
    quoted = repr(word[:_MAX_WORD_CHARS])
    if _MALFORMED_CALL.search(lower):
        raise TransientError("malformed_tool_call", f"the provider cannot read the model's tool call: {quoted}")
    if _REFUSAL.search(lower):
        raise InvalidResponseError("refusal", f"{provider}: the provider's filter stopped the answer: {quoted}")
    if _PASSING.search(lower):
        raise TransientError("answer_interrupted", f"the provider stopped the answer: {quoted}")
    reason = f"{provider}: the answer ended with {quoted}, which the protocol does not define as a good end"
    raise InvalidResponseError("unknown_finish_reason", reason)
