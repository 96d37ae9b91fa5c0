from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from batchray.schema import ItemStatus, Result, StopReason
from batchray.views.openai_lines import CHAT_COMPLETIONS, RESPONSES, is_in_error_file, openai_failure, openai_line
from tests.builders.results import ITEM, WHEN, extras, failed, result, said, waiting

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response


def line_of(given: Result, endpoint: str = CHAT_COMPLETIONS) -> dict[str, Any]:
    line: dict[str, Any] = orjson.loads(openai_line(given, endpoint, 1_700_000_000))
    assert list(line) == ["id", "custom_id", "response", "error"]
    return line


def completion_of(given: Result) -> ChatCompletion:
    from openai.types.chat import ChatCompletion

    completion = ChatCompletion.model_validate(line_of(given)["response"]["body"])
    assert extras(completion) == []
    return completion


def response_of(given: Result) -> Response:
    from openai.types.responses import Response

    response = Response.model_validate(line_of(given, RESPONSES)["response"]["body"])
    assert extras(response) == []
    return response


def test_the_line_of_a_success_has_a_response_of_status_200() -> None:
    line = line_of(result(messages=[said("It is 8.")]))
    assert (line["id"], line["custom_id"], line["error"]) == (
        "batch_req_1b4e28ba2fa14d3ba3f5000000700000",
        "c-7",
        None,
    )
    assert line["response"]["status_code"] == 200
    assert line["response"]["request_id"] == "run-1b4e28ba-2fa1-4d3b-a3f5-000000700000"


def test_its_body_is_a_chat_completion() -> None:
    completion = completion_of(result(messages=[said("one", 1), said("It is 8.")]))
    [choice] = completion.choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("It is 8.", None, "stop")
    assert (completion.model, completion.created) == ("offline/rules", int(WHEN.timestamp()))
    assert completion.usage is not None
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.completion_tokens_details is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (7, 5)
    assert completion.usage.prompt_tokens_details.cached_tokens == 3
    assert completion.usage.completion_tokens_details.reasoning_tokens == 2


def test_its_body_is_a_response_if_that_endpoint_was_asked() -> None:
    response = response_of(result(messages=[said("It is 8.")], metadata={"run": "x", "n": 1}))
    assert (response.output_text, response.status, response.error) == ("It is 8.", "completed", None)
    assert response.metadata == {"run": "x", "n": "1"}
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens) == (7, 3)


@pytest.mark.parametrize("text", ["", "I need two looks."])
def test_calls_that_wait_for_the_caller_are_in_the_body(text: str) -> None:
    [choice] = completion_of(waiting(text)).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", text or None)
    assert [call.id for call in choice.message.tool_calls or ()] == ["call-1", "call-2"]
    calls = [item for item in response_of(waiting(text)).output if item.type == "function_call"]
    assert [(call.call_id, call.name, call.arguments) for call in calls] == [
        ("call-1", "look", '{"at":"sky"}'),
        ("call-2", "look", '{"at":"sky"}'),
    ]
    assert response_of(waiting(text)).output_text == text


def test_an_answer_that_the_limit_of_steps_cut_says_so() -> None:
    cut = result(stop_reason=StopReason.MAX_STEPS, messages=[said("so far")])
    assert completion_of(cut).choices[0].finish_reason == "length"
    assert response_of(cut).status == "incomplete"


def test_an_answer_without_messages_or_a_model_is_valid_too() -> None:
    completion = completion_of(result(model=None))
    assert (completion.model, completion.created) == ("a", 1_700_000_000)
    assert completion.choices[0].message.content == ""
    assert response_of(result(model=None)).output_text == ""


@pytest.mark.parametrize(("given", "expected"), [(None, ITEM), (5, "5"), ("", ""), ("ü\n", "ü\n")])
def test_a_custom_id_is_a_text(given: Any, expected: str) -> None:
    assert line_of(result(custom_id=given))["custom_id"] == expected


@pytest.mark.parametrize(
    ("type", "status", "kind"),
    [
        ("bad_request", 400, "invalid_request_error"),
        ("not_found", 404, "invalid_request_error"),
        ("rate_limited", 429, "rate_limit_error"),
        ("server_error", 500, "server_error"),
        ("ZeroDivisionError", 500, "server_error"),
    ],
)
def test_a_failure_is_a_response_with_its_status_in_the_error_file(type: str, status: int, kind: str) -> None:
    line = line_of(failed(type))
    assert (is_in_error_file(failed(type)), line["error"]) == (True, None)
    assert line["response"]["status_code"] == status
    error = {"message": "it says why", "type": kind, "param": None, "code": type}
    assert line["response"]["body"] == {"error": error}


def test_a_wrong_answer_to_a_tool_call_is_the_fault_of_the_request() -> None:
    line = line_of(failed("no_pending_approval", StopReason.INVALID_TOOL_CALL))
    assert line["response"]["status_code"] == 400


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (result(status=ItemStatus.EXPIRED, stop_reason=StopReason.ERROR), "batch_expired"),
        (result(status=ItemStatus.CANCELED, stop_reason=StopReason.CANCELLED), "batch_cancelled"),
        (failed("deadline_exceeded"), "request_timeout"),
    ],
    ids=["expired", "canceled", "late"],
)
def test_a_request_without_a_response_has_an_error(given: Result, code: str) -> None:
    line = line_of(given)
    assert (line["response"], line["error"]["code"]) == (None, code)
    assert line["error"]["message"]
    assert is_in_error_file(given)
    assert not is_in_error_file(result())


def test_a_request_that_was_refused_has_a_line_of_its_own() -> None:
    line = orjson.loads(openai_failure(ITEM, "c", 404, "model_not_found", "The model `x` does not exist."))
    assert (line["response"]["status_code"], line["error"]) == (404, None)
    assert line["response"]["body"]["error"]["code"] == "model_not_found"
