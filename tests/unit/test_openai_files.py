"""The input files of OpenAI batches: every problem is reported with its line, in the words of OpenAI's API."""

from __future__ import annotations

import io
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.batch.formats.openai_files import LineProblem, OpenAIFile
from batchray.batch.rules import KnownAgent
from batchray.batch.spool import RawRequest
from batchray.errors import RefusedLinesError

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
AGENTS = {
    "clerk": KnownAgent("offline/rules", "offline", "Front desk"),
    "poet": KnownAgent("openai/gpt-4o-mini", "openai"),
}
ASK = [{"role": "user", "content": "Hello"}]


def line(custom_id: str = "a", url: str = CHAT, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "clerk", "messages": ASK, **body}}


def read(*lines: object, endpoint: str = CHAT) -> list[RawRequest]:
    text = b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)
    return list(OpenAIFile(io.BytesIO(text), endpoint, AGENTS).requests())


def problems(*lines: object, endpoint: str = CHAT) -> tuple[LineProblem, ...]:
    with pytest.raises(RefusedLinesError) as refused:
        read(*lines, endpoint=endpoint)
    return tuple(LineProblem(**problem) for problem in refused.value.problems)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in line().items() if key != name}


@pytest.mark.parametrize(
    ("bad", "code", "param", "said"),
    [
        (b"{bad", "invalid_json_line", None, "This line is not parseable as valid JSON."),
        (b"[1]", "invalid_request", None, "Each line must be a JSON object."),
        *(
            (without(name), "missing_required_parameter", name, f"Missing required parameter: '{name}'.")
            for name in ("custom_id", "method", "url", "body")
        ),
        ({**line(), "custom_id": 1}, "invalid_type", "custom_id", "expected a string, but got an integer instead"),
        ({**line(), "body": None}, "invalid_type", "body", "expected an object, but got null instead"),
        ({**line(), "custom_id": ""}, "invalid_value", "custom_id", "empty"),
        ({**line(), "more": 1}, "unknown_parameter", None, "Unknown parameter: 'more'."),
        ({**line(), "method": "GET"}, "invalid_value", "method", "Supported values are: 'POST'."),
        (line(url=RESPONSES), "invalid_url", "url", "does not match the batch endpoint"),
        (line(stream=True), "streaming_unsupported", "body.stream", "Streaming is not supported in the Batch API"),
        (line(model=None), "invalid_request", "body.model", "Model parameter is required."),
        (line(model=[1]), "invalid_type", "body.model", "Model must be a string."),
        (line(messages=[]), "invalid_request", "body.messages", "Messages parameter is required."),
        (line(messages=[{"role": "cat"}]), "invalid_request", "body.messages[0].role", "'cat' is not one of"),
        (line(n=2), "invalid_request", "body.n", "an agent gives one answer"),
        (line("first"), "duplicate_custom_id", "custom_id", "is a duplicate of another request"),
    ],
)
def test_a_bad_line_fails_the_batch_with_its_number(bad: object, code: str, param: str | None, said: str) -> None:
    [problem] = problems(line("first"), b"", bad, line("last"))
    assert (problem.code, problem.line, problem.param) == (code, 3, param)
    assert said in problem.message


def test_all_problems_are_listed_up_to_a_hundred() -> None:
    assert [each.line for each in problems(b"{", line("a"), b"[", line("b", stream=True))] == [1, 3, 4]
    assert len(problems(*[b"{"] * 150)) == 100


def test_a_file_without_lines_is_refused_as_a_whole() -> None:
    [problem] = problems(b"\n \n")
    assert (problem.code, problem.line) == ("empty_file", None)


def test_a_model_may_be_the_id_the_name_or_the_model_of_an_agent() -> None:
    named = ["clerk", "Front desk", "offline/rules", "rules", "poet", "gpt-4o-mini"]
    found = read(*(line(str(number), model=name) for number, name in enumerate(named)))
    assert [request.agent_id for request in found] == ["clerk"] * 4 + ["poet"] * 2
    assert [request.custom_id for request in found] == [str(number) for number in range(6)]


def test_a_line_with_an_unknown_model_fails_alone_if_another_one_is_known() -> None:
    known, unknown = read(line("a"), line("b", model="gpt-9", temperature=0.5))
    assert (known.agent_id, unknown.agent_id, unknown.custom_id) == ("clerk", "gpt-9", "b")
    assert orjson.loads(unknown.body)["agent_id"] == "gpt-9"


def test_a_file_whose_models_are_all_unknown_fails_as_in_openai_s_api() -> None:
    found = problems(line("a", model="gpt-9"), line("b", model="gpt-8"))
    assert [(each.code, each.line, each.param) for each in found] == [
        ("model_not_found", 1, "body.model"),
        ("model_not_found", 2, "body.model"),
    ]
    assert found[0].message.startswith("The provided model 'gpt-9' is not supported by the Batch API: no agent has")


def test_lines_of_the_responses_endpoint_are_read() -> None:
    entry = {**line(url=RESPONSES), "body": {"model": "clerk", "input": "Hello"}}
    [request] = read(entry, endpoint=RESPONSES)
    assert orjson.loads(request.body)["messages"][0]["content"] == "Hello"
    [problem] = problems({**entry, "body": {"model": "clerk"}}, endpoint=RESPONSES)
    assert problem.param == "body.input"


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([line("a"), line("b"), line("c", model="x")]))))
def test_any_file_is_read_or_refused_with_problems(lines: list[object]) -> None:
    text = b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)
    refused: RefusedLinesError | None = None
    n_read = 0
    try:
        n_read = len(list(OpenAIFile(io.BytesIO(text), CHAT, AGENTS).requests()))
    except RefusedLinesError as error:
        refused = error
    assert n_read or (refused is not None and refused.problems and str(refused))
