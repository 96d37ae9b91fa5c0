"""The quickstart as a user runs it: one run of README's first command on Ray, and what came out of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections import Counter
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import psutil
import pytest

from tests.cluster.processes import COMMAND, ROOT, run_there, user_directory


class Quickstart(NamedTuple):
    done: subprocess.CompletedProcess[str]
    lines: list[dict[str, Any]]
    left: list[str]
    """Command lines of processes that outlived the command."""

    def of(self, agent_id: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["agent_id"] == agent_id]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    with user_directory(tmp_path_factory.mktemp("quickstart")) as (directory, environment):
        done = run_there(COMMAND.split(), directory, environment)
        left = [process for process in psutil.process_iter(["environ"]) if _is_of(process, environment)]
        _, alive = psutil.wait_procs(left, timeout=15)
        lines = (directory / "results.jsonl").read_text().splitlines()
        return Quickstart(done, [json.loads(line) for line in lines], [str(process) for process in alive])


def _is_of(process: psutil.Process, environment: Mapping[str, str]) -> bool:
    found = process.info["environ"] or {}
    return bool(found.get("RAY_TMPDIR") == environment["RAY_TMPDIR"])


@pytest.fixture(scope="module")
def tools() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_tools", ROOT / "configs" / "quickstart" / "tools.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_exit_status_says_that_some_items_failed(quickstart: Quickstart) -> None:
    assert quickstart.done.returncode == 1, quickstart.done.stderr


def test_every_request_has_a_line_in_the_order_of_the_batch(quickstart: Quickstart) -> None:
    requests = (ROOT / "configs" / "quickstart" / "requests.jsonl").read_text().splitlines()
    asked = [json.loads(line)["custom_id"] for line in requests]
    assert len(asked) >= 200
    assert len(set(asked)) == len(asked)
    assert [line["custom_id"] for line in quickstart.lines] == asked
    assert [line["index"] for line in quickstart.lines] == list(range(len(asked)))


def test_only_the_intended_failures_occur(quickstart: Quickstart) -> None:
    failures = Counter(
        (line["agent_id"], line["stop_reason"], line["error"]["type"])
        for line in quickstart.lines
        if line["status"] != "succeeded"
    )
    assert failures == {
        ("refused", "llm_api_error", "api_error"): 3,
        ("garbled", "invalid_tool_call", "invalid_tool_call"): 3,
        ("slow", "error", "deadline_exceeded"): 3,
    }


def test_a_request_over_its_max_steps_succeeds_with_the_messages_so_far(quickstart: Quickstart) -> None:
    for line in quickstart.of("endless"):
        assert (line["status"], line["stop_reason"]) == ("succeeded", "max_steps")
        assert line["usage"]["step_count"] == 2
        assert line["messages"]


def test_the_exception_of_a_tool_is_returned_to_the_model_and_the_run_succeeds(quickstart: Quickstart) -> None:
    raised = [
        line
        for line in quickstart.lines
        for message in line["messages"]
        if message["message_type"] == "tool_return_message" and message["status"] == "error"
    ]
    assert Counter(line["agent_id"] for line in raised) == {"calculator": 2, "clerk": 3}
    assert all(line["status"] == "succeeded" for line in raised)
    assert all("I could not work that out" in line["messages"][-1]["content"] for line in raised)


def test_the_planner_thinks_calls_two_tools_at_once_and_answers(quickstart: Quickstart) -> None:
    kinds = [message["message_type"] for message in quickstart.of("planner")[0]["messages"]]
    assert kinds[:3] == ["reasoning_message", "tool_call_message", "tool_return_message"]
    assert kinds[-1] == "assistant_message"
    returns = quickstart.of("planner")[0]["messages"][2]["tool_returns"]
    assert [each["tool_return"] for each in returns] == ["120", "80"]


def test_the_output_starts_with_the_job_and_ends_with_where_to_look(quickstart: Quickstart) -> None:
    job, *rest = quickstart.done.stdout.splitlines()
    assert job.startswith("job-")
    printed = "\n".join(rest)
    assert "240 requests: job completed" in printed
    assert "errored            9    3.8%" in printed
    assert "results: results.jsonl" in printed
    assert rest[-2] == f"failures: batchray results {job} --failed"
    assert rest[-1] == f"next: batchray report {job}; batchray retry {job}"


def test_no_process_is_left(quickstart: Quickstart) -> None:
    assert quickstart.left == []


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", 14), ("(2 + 3) * -4", -20), ("7 // 2 + 7 % 2", 4), ("2 ** 10", 1024), (" 1 / 4", 0.25)],
)
def test_calculate_works_out_arithmetic(tools: ModuleType, expression: str, value: float) -> None:
    assert tools.calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "(1).real",
        "[1]",
        "True",
        "'a' * 3",
        "x",
        "2 ** 65",
        "9 ** 9 ** 9",
        "1 +",
        "1+" * 200,
    ],
)
def test_calculate_refuses_anything_but_arithmetic(tools: ModuleType, expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        tools.calculate(expression)
