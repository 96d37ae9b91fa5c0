"""How answers end: good ends, cuts, and the errors of all others."""

from __future__ import annotations

import pytest

from batchray.errors import InvalidResponseError
from batchray.models import ModelReply, cut_error, reply_parts
from batchray.models.endings import CHAT_ENDS, MESSAGE_ENDS, FinishReason, check_not_empty, finish_reason
from batchray.models.provider_errors import TransientError
from batchray.schema import Usage


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("eos", "stop"),
        ("function_call", "tool_calls"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("model_context_window_exceeded", "context_length"),
        ("context_length_exceeded", "context_length"),
    ],
)
def test_a_known_finish_reason_is_read_in_upper_and_lower_case(word: str, end: str) -> None:
    assert finish_reason(CHAT_ENDS, word, "p") == end


@pytest.mark.parametrize("ends", [CHAT_ENDS, MESSAGE_ENDS])
@pytest.mark.parametrize(
    ("word", "type"),
    [
        ("abort", "answer_interrupted"),
        ("error", "answer_interrupted"),
        ("upstream_error", "answer_interrupted"),
        ("insufficient_system_resource", "answer_interrupted"),
        ("function_call_filter: UNEXPECTED_TOOL_CALL", "malformed_tool_call"),
        ("MALFORMED_FUNCTION_CALL", "malformed_tool_call"),
    ],
)
def test_a_transient_finish_reason_may_be_tried_again(ends: dict[str, FinishReason], word: str, type: str) -> None:
    with pytest.raises(TransientError) as raised:
        finish_reason(ends, word, "p")
    assert (raised.value.type, repr(word) in raised.value.detail) == (type, True)


@pytest.mark.parametrize(
    ("word", "type"),
    [
        ("content_filter", "refusal"),
        ("SAFETY", "refusal"),
        ("guardrail_intervened", "refusal"),
        ("load", "unknown_finish_reason"),
        ("x" * 500, "unknown_finish_reason"),
    ],
)
def test_any_other_end_is_an_error_by_name(word: str, type: str) -> None:
    with pytest.raises(InvalidResponseError) as raised:
        finish_reason(CHAT_ENDS, word, "p")
    assert (raised.value.type, raised.value.message.startswith("p: ")) == (type, True)
    assert repr(word[:80]) in raised.value.message
    assert len(raised.value.message) < 200


@pytest.mark.parametrize(
    ("reason", "parts", "type"),
    [
        ("stop", {}, "no_content"),
        ("stop", {"has_reasoning": True}, "no_content"),
        ("tool_calls", {"has_text": True}, "no_tool_calls"),
        ("stop", {"has_text": True}, None),
        ("stop", {"has_calls": True}, None),
        ("length", {}, None),
        ("context_length", {}, None),
    ],
)
def test_a_complete_answer_is_not_empty(reason: FinishReason, parts: dict[str, bool], type: str | None) -> None:
    given = {"has_text": False, "has_calls": False, **parts}
    if type is None:
        return check_not_empty(reason, "p", **given)
    with pytest.raises(InvalidResponseError) as raised:
        check_not_empty(reason, "p", **given)
    assert raised.value.type == type
    return None


@pytest.mark.parametrize(
    ("reason", "max_tokens", "n_tokens", "type", "said"),
    [
        ("length", 10, 10, "max_tokens_exceeded", "max_tokens is 10"),
        ("length", 10, 0, "max_tokens_exceeded", "max_tokens is 10"),
        ("length", 4096, 10, "max_tokens_exceeded", "after 10 tokens, before its limit of 4,096"),
        ("length", None, 10, "max_tokens_exceeded", "the agent sets no max_tokens"),
        ("context_length", 10, 3, "context_length_exceeded", "fill the model's context"),
    ],
)
def test_the_error_of_a_cut_answer_says_which_limit_cut_it(
    reason: str, max_tokens: int | None, n_tokens: int, type: str, said: str
) -> None:
    usage = Usage(completion_tokens=n_tokens)
    reply = ModelReply(reply_parts("It is"), finish_reason=reason, usage=usage, max_tokens=max_tokens)
    assert reply.is_cut
    assert cut_error(reply).type == type
    assert said in cut_error(reply).message
