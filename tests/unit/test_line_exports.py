"""Results written as lines of other programs' formats and as CSV."""

from __future__ import annotations

import gzip
import io
import threading
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pytest

import batchray
from batchray import Agent, AgentRequest, Tool
from batchray.errors import BatchrayError, ConfigError, UsageError
from batchray.jobs.handle import Job


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def answer(request: AgentRequest) -> str:
    if "fails" in str(request.input):
        raise ValueError("fails")
    return f"{request.input}!"


ASK = {"name": "ask", "description": "Ask the user.", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}
AGENTS = [
    Agent(id="f", run=answer),
    Agent(
        id="m",
        model="offline/scripted",
        system="Add.",
        tools=(Tool(function=add, idempotent=True),),
        script=({"text": "let me see", "reasoning": "hm", "tool_calls": [CALL]}, {"text": "It is 3."}),
    ),
    Agent(
        id="waits",
        model="offline/scripted",
        tools=(add,),
        script=({"tool_calls": [CALL, {"name": "ask", "arguments": {}}]},),
    ),
    Agent(id="endless", model="offline/scripted", tools=(add,), max_steps=1, script=({"tool_calls": [CALL]},)),
]
REQUESTS: list[dict[str, Any]] = [
    {"agent_id": "f", "input": "one", "custom_id": "first"},
    {"agent_id": "f", "input": "fails", "custom_id": 2},
    {"agent_id": "m", "input": "1 + 2", "metadata": {"k": 1}, "include_return_message_types": []},
    {"agent_id": "waits", "input": "x", "client_tools": [ASK]},
    {"agent_id": "endless", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]},
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> batchray.Job:
    data_dir = tmp_path_factory.mktemp("data")
    return batchray.run(REQUESTS, AGENTS, data_dir=data_dir, executor="local", progress=False)


def lines_of(job: Job, format: str, **options: Any) -> list[dict[str, Any]]:
    file = io.BytesIO()
    job.export(file, format, **options)
    return [orjson.loads(line) for line in file.getvalue().splitlines()]


def names_in(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def test_jsonl_has_the_results_with_their_input(job: Job) -> None:
    results = job.results("index", include_input=True)
    assert lines_of(job, "jsonl") == [orjson.loads(result.model_dump_json()) for result in results]


@pytest.mark.parametrize("name", ["x.jsonl", "x.NDJSON", "x.jsonl.gz", "x.jsonl.zst"])
def test_the_format_and_the_compression_follow_from_the_name(job: Job, tmp_path: Path, name: str) -> None:
    file = io.BytesIO()
    job.export(file, "jsonl")
    for _ in range(2):  # a second export replaces the first with the same bytes
        job.export(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        unpacked = gzip.decompress(data) if name.endswith("gz") else data
        if name.endswith("zst"):
            unpacked = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
        assert unpacked == file.getvalue()
    assert names_in(tmp_path) == [name]


def test_openai_has_an_output_file_and_an_error_file(job: Job, tmp_path: Path) -> None:
    from openai.types.chat import ChatCompletion

    job.export(tmp_path / "out.v2.jsonl", "openai")
    assert names_in(tmp_path) == ["out.v2.errors.jsonl", "out.v2.jsonl"]
    good = [orjson.loads(line) for line in (tmp_path / "out.v2.jsonl").read_bytes().splitlines()]
    [bad] = [orjson.loads(line) for line in (tmp_path / "out.v2.errors.jsonl").read_bytes().splitlines()]
    assert (bad["custom_id"], bad["response"]["body"]["error"]["code"]) == ("2", "ValueError")
    completions = [ChatCompletion.model_validate(line["response"]["body"]) for line in good]
    choices = [completion.choices[0] for completion in completions]
    assert [choice.finish_reason for choice in choices] == ["stop", "stop", "tool_calls", "length"]
    assert [choice.message.content for choice in choices] == ["one!", "It is 3.", None, ""]
    assert [line["custom_id"] for line in good[:1]] == ["first"]
    names = [call.function.name for call in choices[2].message.tool_calls or () if call.type == "function"]
    assert names == ["add", "ask"]


def test_openai_has_no_error_file_if_nothing_failed(tmp_path: Path) -> None:
    requests = [{"agent_id": "a", "input": "x"}]
    agent = Agent(id="a", run=lambda request: "y")
    job = batchray.run(requests, [agent], data_dir=tmp_path / "data", executor="local", progress=False)
    job.export(tmp_path / "out.jsonl", "openai")
    assert names_in(tmp_path) == ["data", "out.jsonl"]
    earlier = {"id": "batch_req_1", "custom_id": "1", "response": None, "error": {"code": "x", "message": "y"}}
    (tmp_path / "out.errors.jsonl").write_bytes(orjson.dumps(earlier))
    job.export(tmp_path / "out.jsonl", "openai")
    assert names_in(tmp_path) == ["data", "out.jsonl"]
    (tmp_path / "out.errors.jsonl").write_text("of another program")
    job.export(tmp_path / "out.jsonl", "openai")
    assert names_in(tmp_path) == ["data", "out.errors.jsonl", "out.jsonl"]


def test_an_open_file_gets_both_in_the_order_of_the_batch(job: Job) -> None:
    from openai.types.responses import Response

    lines = lines_of(job, "openai", endpoint="/v1/responses")
    assert [line["response"]["status_code"] for line in lines] == [200, 500, 200, 200, 200]
    assert Response.model_validate(lines[2]["response"]["body"]).output_text == "It is 3."


def test_anthropic_has_a_line_for_each_result(job: Job) -> None:
    from anthropic.types.messages import MessageBatchIndividualResponse

    found = [MessageBatchIndividualResponse.model_validate(line) for line in lines_of(job, "anthropic")]
    assert [line.result.type for line in found] == ["succeeded", "errored", *["succeeded"] * 3]


def test_sft_has_the_conversations_that_show_a_good_answer(job: Job) -> None:
    plain, added, waits = lines_of(job, "sft")
    assert plain == {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "one!"}]}
    assert [message["role"] for message in added["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert added["messages"][2]["content"] == "let me see"
    call, returned = added["messages"][2]["tool_calls"][0], added["messages"][3]
    assert (call["function"], returned["content"]) == ({"name": "add", "arguments": '{"a":1,"b":2}'}, "3")
    assert call["id"] == returned["tool_call_id"]
    assert added["tools"][0]["function"]["description"] == "Add two numbers."
    assert [tool["function"]["name"] for tool in waits["tools"]] == ["add", "ask"]
    assert len(waits["messages"][-1]["tool_calls"]) == 2


def test_tools_without_a_name_are_described_as_the_job_had_them(tmp_path: Path) -> None:
    def local_tool(count: int) -> int:
        """Count."""
        return count

    agent = Agent(id="m", model="offline/scripted", tools=(local_tool, add), script=({"text": "x"},))
    request = {"agent_id": "m", "input": "x"}
    job = batchray.run([request], [agent], data_dir=tmp_path, executor="local", progress=False)
    [line], [trajectory] = lines_of(job, "sft"), lines_of(job, "atif")
    described = {tool["function"]["name"]: tool["function"] for tool in line["tools"]}
    assert described.keys() == {"local_tool", "add"}
    assert described["local_tool"]["description"] == "Count."
    assert described["local_tool"]["parameters"]["properties"] == {"count": {"title": "Count", "type": "integer"}}
    assert trajectory["agent"]["tool_definitions"] == line["tools"]


def test_a_tool_whose_description_json_cannot_hold_runs_without_one_in_exports(tmp_path: Path) -> None:
    def large(count: int = 2**70) -> int:
        return count

    agent = Agent(id="m", model="offline/scripted", tools=(large,), script=({"text": "x"},))
    request = {"agent_id": "m", "input": "x"}
    job = batchray.run([request], [agent], data_dir=tmp_path, executor="local", progress=False)
    assert job.counts["succeeded"] == 1
    assert "tool_definitions" not in lines_of(job, "atif")[0]["agent"]


def test_sft_of_an_older_job_needs_the_code_of_the_tools_and_trajectories_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def local_tool() -> int:
        return 1

    monkeypatch.setattr("batchray.jobs.create.specs_of_nameless", lambda agent: [])
    agent = Agent(id="m", model="offline/scripted", tools=(local_tool,), script=({"text": "x"},))
    request = {"agent_id": "m", "input": "x"}
    job = batchray.run([request], [agent], data_dir=tmp_path, executor="local", progress=False)
    with pytest.raises(ConfigError, match=r"agent 'm': .*its code describes the tools"):
        lines_of(job, "sft")
    assert "tool_definitions" not in lines_of(job, "atif")[0]["agent"]


def test_a_trajectory_has_a_step_for_each_model_call(job: Job) -> None:
    plain, failed, added, waits, cut = lines_of(job, "atif")
    assert [step["source"] for step in added["steps"]] == ["system", "user", "agent", "agent"]
    asked = added["steps"][2]
    assert (asked["message"], asked["reasoning_content"]) == ("let me see", "hm")
    [call], [returned] = asked["tool_calls"], asked["observation"]["results"]
    assert (call["function_name"], call["arguments"], returned["content"]) == ("add", {"a": 1, "b": 2}, "3")
    assert returned["source_call_id"] == call["tool_call_id"]
    assert added["agent"]["tool_definitions"][0]["function"]["name"] == "add"
    assert added["extra"]["metadata"] == {"k": 1}
    assert [call["function_name"] for call in waits["steps"][-1]["tool_calls"]] == ["add", "ask"]
    assert [step["source"] for step in cut["steps"]] == ["system", "user", "agent"]
    assert [step["message"] for step in plain["steps"]] == ["one", "one!"]
    assert failed["extra"]["error"]["type"] == "ValueError"
    for trajectory in (plain, failed, added, waits, cut):
        assert [step["step_id"] for step in trajectory["steps"]] == list(range(1, len(trajectory["steps"]) + 1))
        assert trajectory["final_metrics"]["total_steps"] == len(trajectory["steps"])


def test_a_directory_has_a_file_for_each_trajectory(job: Job, tmp_path: Path) -> None:
    job.export(tmp_path / "all", "atif")
    assert names_in(tmp_path / "all") == [f"trajectory-000000{n}.json" for n in range(5)]
    read = [orjson.loads(each.read_bytes()) for each in sorted((tmp_path / "all").iterdir())]
    assert read == lines_of(job, "atif")


def test_csv_has_the_columns_of_the_table(job: Job, tmp_path: Path) -> None:
    job.export(tmp_path / "x.csv")
    table = job.to_arrow()
    options = pa.csv.ConvertOptions(
        column_types=table.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    assert pa.csv.read_csv(tmp_path / "x.csv", convert_options=options, parse_options=parsing).equals(table)


def test_csv_has_json_for_nested_columns(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "q": ["a", 'b "x"\nc'],
            "tags": [["x", None], None],
            "raw": [b"\xff", None],
            "level": pa.array([1, None], pa.int8()),
            "kind": pa.array(["u", "v"]).dictionary_encode(),
        }
    )
    job = batchray.run(
        rows, [AGENTS[0]], input_column="q", data_dir=tmp_path / "data", executor="local", progress=False
    )
    job.export(tmp_path / "x.csv")
    read = pa.csv.read_csv(tmp_path / "x.csv", parse_options=pa.csv.ParseOptions(newlines_in_values=True))
    assert read["q"].to_pylist() == ["a", 'b "x"\nc']
    assert read["tags"].to_pylist() == ['["x",null]', ""]
    assert (read["raw"].to_pylist(), read["level"].to_pylist()) == (["/w==", ""], [1, None])
    assert read["kind"].to_pylist() == ["u", "v"]


def test_csv_has_durations_and_categories_as_numbers_without_quotes(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "q": ["a", "b", "c"],
            "took": pa.array([3_000, None, 1_500], pa.duration("ms")),
            "lag": pa.array([1_800_000_000_000_000_000, 5, 0], pa.duration("ns")),
            "level": pa.array([7, None, 8]).dictionary_encode(),
        }
    )
    job = batchray.run(
        rows, [AGENTS[0]], input_column="q", data_dir=tmp_path / "data", executor="local", progress=False
    )
    job.export(tmp_path / "x.csv")
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ['"a"', "3", "1800000000", "7"],
        ['"b"', "", "5e-9", ""],
        ['"c"', "1.5", "0", "8"],
    ]


@pytest.mark.parametrize("format", ["jsonl", "openai", "csv", "sft", "atif"])
def test_a_file_stays_as_it_was_if_the_export_breaks_off(
    job: Job, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("before")
    reading = type(job)._read_page

    def read(self: Job, after: Any) -> list[Any]:
        if after["after_index"] >= 1:
            raise BatchrayError("the store is away")
        return reading(self, after)[:1]

    monkeypatch.setattr(type(job), "_read_page", read)
    monkeypatch.setattr("batchray.views.result_tables._BLOCK_ROWS", 1)
    with pytest.raises(BatchrayError, match="the store is away"):
        job.export(target, format)
    assert (names_in(tmp_path), target.read_text()) == (["out.jsonl"], "before")


@pytest.mark.parametrize(
    ("target", "format", "reason"),
    [
        ("x", None, "'x' does not tell the format; name it: parquet, jsonl"),
        ("x.json", None, "does not tell the format"),
        ("x.jsonl", "xml", "unknown format 'xml'"),
        ("x.parquet.gz", None, "Parquet is compressed inside"),
        (io.BytesIO(), "parquet", "not to an open file"),
        (io.BytesIO(), None, "an open file does not tell the format"),
    ],
)
def test_an_unknown_or_unsuitable_format_is_refused(job: Job, target: Any, format: str | None, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        job.export(target, format)


def test_an_unknown_endpoint_is_refused(job: Job) -> None:
    with pytest.raises(UsageError, match="unknown endpoint '/v1/embeddings'"):
        lines_of(job, "openai", endpoint="/v1/embeddings")


@pytest.mark.parametrize("format", ["jsonl", "csv", "openai", "parquet"])
def test_a_place_that_cannot_be_written_to_is_named(job: Job, tmp_path: Path, format: str) -> None:
    place = tmp_path / "none" / "x.parquet"
    with pytest.raises(ConfigError, match=r"none/x\.parquet: cannot be written: No such file"):
        job.export(place, format)


def test_a_link_stays_and_its_file_is_replaced(job: Job, tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("before")
    (tmp_path / "link.csv").symlink_to("real.csv")
    job.export(tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() != "before"


def test_a_running_job_is_exported_as_far_as_it_is(tmp_path: Path) -> None:
    gate = threading.Event()

    def wait(request: AgentRequest) -> str:
        assert request.input == "now" or gate.wait(30)
        return "x"

    requests = [{"agent_id": "a", "input": text} for text in ("later", "now", "later")]
    job = batchray.submit(requests, [Agent(id="a", run=wait)], data_dir=tmp_path, executor="local")
    try:
        next(job.results())
        assert [line["index"] for line in lines_of(job, "jsonl")] == [1]
    finally:
        gate.set()
        job.wait(30)
    assert [line["index"] for line in lines_of(job, "jsonl")] == [0, 1, 2]
