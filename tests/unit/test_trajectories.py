"""A result as a conversation, in a notebook and in a terminal."""

from __future__ import annotations

import html.parser
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import batchray
from batchray import Agent, AgentRequest, Job, Result
from batchray.cli.main import cli
from batchray.errors import UnknownItemError, UsageError
from batchray.schema import (
    ApprovalRequestMessage,
    AssistantMessage,
    ErrorInfo,
    ItemStatus,
    LettaToolCall,
    StopReason,
    Timing,
    ToolCallMessage,
    ToolReturnMessage,
    Usage,
)
from batchray.views.trajectory import figures, read_turns
from batchray.views.trajectory_text import print_trajectory

HOSTILE = "<script>alert(1)</script>\x1b[31m\x1b]0;title\x07\x9b\u202e\x00"
COMMON = {"id": "message-1", "date": datetime(2026, 1, 1, tzinfo=UTC)}


def made(**changed: Any) -> Result:
    fields: dict[str, Any] = {
        "index": 3,
        "batch_item_id": "batch_item-1",
        "agent_id": "a",
        "status": ItemStatus.SUCCEEDED,
        "stop_reason": StopReason.END_TURN,
        "messages": [],
        "usage": Usage(prompt_tokens=1200, cached_input_tokens=1000, completion_tokens=7, step_count=2),
        "attempts": 1,
        "timing": Timing(queued_ns=10**7, ttft_ns=4 * 10**8, duration_ns=2_310_000_000),
    }
    return Result(**{**fields, **changed})


def double(n: int) -> int:
    print("doubling")
    return 2 * n


def fail(request: AgentRequest) -> str:
    print("about to fail")
    raise LookupError(f"nothing {HOSTILE}")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    script = [
        {"text": "let me see", "reasoning": "hm", "tool_calls": [{"name": "double", "arguments": {"n": 4}}]},
        {"text": f"It is 8. {HOSTILE}"},
    ]
    agents = [Agent(id="a", model="offline/scripted", script=script, tools=(double,)), Agent(id="f", run=fail)]
    requests = [{"agent_id": "a", "custom_id": "r0", "input": "What is 2 * 4?"}, {"agent_id": "f", "input": "x"}]
    return batchray.run(requests, agents, executor="local", progress=False, data_dir=tmp_path_factory.mktemp("data"))


def test_a_result_reads_like_a_conversation(job: Job) -> None:
    turns = read_turns(job.result(0))
    assert [(turn.kind, turn.title) for turn in turns] == [
        ("user", "user"),
        ("reasoning", "reasoning"),
        ("assistant", "assistant"),
        ("tool", "double"),
        ("assistant", "assistant"),
    ]
    call = turns[3]
    assert call.note == "success"
    assert [(detail.name, detail.text.strip()) for detail in call.details] == [
        ("arguments", '{"n":4}'),
        ("return", "8"),
        ("stdout", "doubling"),
    ]


def test_a_failure_ends_with_what_the_code_printed_its_error_and_traceback(job: Job) -> None:
    *_, output, error = read_turns(job.result(1))
    assert output.details[0].text == "about to fail\n"
    assert error.title == "LookupError"
    assert "in fail" in error.details[0].text


def test_html_folds_tool_calls_and_escapes_everything(job: Job) -> None:
    for result in job.results("index", include_input=True):
        shown = result._repr_html_()
        assert shown is not None
        assert "<details>" in shown
        assert "<script>" not in shown
        assert "&lt;script&gt;" in shown
        assert not set(shown) & set("\x00\x07\x1b\x9b\u202e")
        assert _is_balanced(shown)


def test_a_terminal_gets_no_control_characters_of_a_model(job: Job) -> None:
    for result in job.results("index", include_input=True):
        file = io.StringIO()
        print_trajectory(result, Console(file=file, width=80))
        assert not set(file.getvalue()) & set("\x00\x07\x1b\x9b\u202e\r")


def test_calls_and_returns_that_lack_each_other_are_shown() -> None:
    call = LettaToolCall(name="pay", arguments="no json", tool_call_id="c1")
    turns = read_turns(
        made(
            messages=[
                ApprovalRequestMessage(**COMMON, tool_call=call, tool_calls=[call]),
                ToolReturnMessage(**COMMON, tool_return="late", status="error", tool_call_id="c0"),
            ]
        )
    )
    assert [(turn.title, turn.note, turn.is_failed) for turn in turns] == [
        ("pay", "waits for approval", False),
        ("return of c0", "error", True),
    ]


def test_ids_of_calls_that_repeat_keep_their_own_returns() -> None:
    messages: list[Any] = []
    for n in range(2):
        call = LettaToolCall(name="count", arguments=str(n), tool_call_id="call_0")
        messages.append(ToolCallMessage(**COMMON, tool_call=call, tool_calls=[call]))
        messages.append(ToolReturnMessage(**COMMON, tool_return=f"r{n}", status="success", tool_call_id="call_0"))
    assert [[detail.text for detail in turn.details] for turn in read_turns(made(messages=messages))] == [
        ["0", "r0"],
        ["1", "r1"],
    ]


@pytest.mark.parametrize(
    ("given_input", "turns"),
    [
        (None, []),
        ("hello", [("user", "hello")]),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], [("user", "a\nb")]),
        (
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            [("system", "be brief"), ("user", "hi")],
        ),
        (
            [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 10_000}}],
            [("user", "[image image/png]")],
        ),
    ],
)
def test_every_shape_of_an_input_is_shown(given_input: Any, turns: list[tuple[str, str]]) -> None:
    assert [(turn.kind, turn.text) for turn in read_turns(made(input=given_input))] == turns


def test_the_last_line_has_usage_and_timing() -> None:
    assert figures(made(cost_usd=0.0123)) == (
        "2 steps, 1,200 tokens in (1,000 cached), 7 out, 2.31 s, first token after 400 ms, queued 10 ms, 1 attempt, "
        "$0.0123"
    )


@pytest.mark.parametrize("char", ["x", "<", "\x1b", "\U0001f468\u200d"])
def test_html_and_repr_are_small_whatever_is_in_a_result(char: str) -> None:
    text = char * 300_000
    result = made(
        input=text,
        custom_id=text,
        messages=[AssistantMessage(**COMMON, content=text) for _ in range(300)],
        error=ErrorInfo(type=text, message=text, traceback=text),
        stdout=text,
    )
    shown = result._repr_html_()
    assert shown is not None
    assert len(shown) < 150_000
    assert "turns are left out" in shown
    assert _is_balanced(shown)
    assert len(repr(result)) < 1_500
    assert str(result) == repr(result)


def test_an_error_is_printed_without_its_traceback() -> None:
    error = ErrorInfo(type="ValueError", message="no " * 1000, traceback="Traceback (most recent call last): ...")
    for shown in (str(error), repr(error), str(made(error=error))):
        assert "ValueError" in shown
        assert "Traceback" not in shown
        assert len(shown) < 300


@given(st.text(), st.text())
def test_any_text_can_be_shown(text: str, arguments: str) -> None:
    call = LettaToolCall(name=text, arguments=arguments, tool_call_id=text)
    result = made(input=text, messages=[ToolCallMessage(**COMMON, tool_call=call)], stdout=text, custom_id=text)
    assert _is_balanced(result._repr_html_() or "")
    file = io.StringIO()
    print_trajectory(result, Console(file=file, width=40))
    assert all(char.isprintable() or char.isspace() or char in "\u200c\u200d" for char in file.getvalue())


def test_one_result_is_found_by_its_index_or_its_custom_id(job: Job) -> None:
    assert job.result(1).index == 1
    assert job.result(custom_id="r0").input == "What is 2 * 4?"
    with pytest.raises(UnknownItemError, match="there is no item 2; it has 2 items, with the indices 0 to 1"):
        job.result(2)
    with pytest.raises(UnknownItemError, match="no item has the custom_id 'r9'"):
        job.result(custom_id="r9")
    with pytest.raises(UsageError, match="give an index or a custom_id"):
        job.result()


@pytest.mark.parametrize("item", ["0", "r0"])
def test_show_prints_the_conversation_of_an_item(item: str, job: Job) -> None:
    done = CliRunner().invoke(cli, ["show", job.id, item, "--data-dir", str(job.data_dir)])
    assert done.exit_code == 0, done
    assert "[user]\nWhat is 2 * 4?\n" in done.output
    assert '[tool double] (success)\narguments: {"n":4}\nreturn: 8\nstdout: doubling\n' in done.output


def test_a_number_that_is_an_index_and_a_custom_id_is_told_with_the_other_command(tmp_path: Path) -> None:
    requests = [{"agent_id": "a", "input": f"{n} apples", "custom_id": str(n)} for n in (1, 2, 3)]
    agent = Agent(id="a", model="offline/rules")
    ended = batchray.run(requests, [agent], executor="local", data_dir=tmp_path, progress=False)
    place = ("--data-dir", str(tmp_path))
    as_index = CliRunner().invoke(cli, ["show", "last", "2", *place])
    assert "3 apples" in as_index.stdout
    said = f"2 is an index here; item 1 has it as its custom_id: batchray show last --custom-id 2 {' '.join(place)}"
    assert as_index.stderr == f"batchray: {said}\n"
    as_custom_id = CliRunner().invoke(cli, ["show", ended.id, "--custom-id", "2", *place])
    assert ("2 apples" in as_custom_id.stdout, as_custom_id.stderr) == (True, "")
    assert CliRunner().invoke(cli, ["show", ended.id, "3", *place]).stderr == ""  # there is no index 3
    both = CliRunner().invoke(cli, ["show", ended.id, "2", "--custom-id", "2", *place])
    assert isinstance(both.exception, UsageError)


def test_show_without_an_item_shows_the_job(job: Job) -> None:
    done = CliRunner().invoke(cli, ["show", job.id, "--data-dir", str(job.data_dir)])
    assert done.exit_code == 0, done
    assert f"job {job.id}: completed, 2 of 2 done" in done.output


@pytest.mark.parametrize("item", ["7", "9" * 5000, "-1", "r9", HOSTILE])
def test_show_refuses_an_item_that_is_not_in_the_job(item: str, job: Job) -> None:
    done = CliRunner().invoke(cli, ["show", "--data-dir", str(job.data_dir), "--", job.id, item])
    assert isinstance(done.exception, UnknownItemError)
    assert len(str(done.exception)) < 300
    assert str(done.exception).isprintable()


class _Balance(html.parser.HTMLParser):
    """Follows which elements are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.is_good = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.is_good = self.is_good and bool(self.open) and self.open.pop() == tag


def _is_balanced(shown: str) -> bool:
    balance = _Balance()
    balance.feed(shown)
    return balance.is_good and not balance.open
