"""Memory blocks: the prompt for them, and the tools that edit them."""

from __future__ import annotations

from typing import Any

import pytest

from batchray.agents import AttemptRunner
from batchray.agents.memory import RunMemory, memory_tools
from batchray.config import Agent, MemoryBlock
from tests.builders.agents import Conversation, bound, calls, returns

HUMAN = MemoryBlock(label="human", value="Name: Ada\nLikes: tea", limit=60, description="Who it is about.")
RULES = MemoryBlock(label="rules", value="Be kind.", read_only=True)


def memory(**edited: str) -> RunMemory:
    return RunMemory([HUMAN, RULES], edited)


@pytest.mark.parametrize(
    ("insert_line", "value"),
    [
        (-1, "Name: Ada\nLikes: tea\nAge: 36"),
        (0, "Age: 36\nName: Ada\nLikes: tea"),
        (1, "Name: Ada\nAge: 36\nLikes: tea"),
        (2, "Name: Ada\nLikes: tea\nAge: 36"),
    ],
)
async def test_inserted_text_becomes_separate_lines(insert_line: int, value: str) -> None:
    edited = memory()
    await edited.memory_insert("human", "Age: 36", insert_line)
    assert edited.edited == {"human": value}


async def test_text_in_an_empty_block_is_its_only_line() -> None:
    edited = memory(human="")
    await edited.memory_insert("human", "Name: Bo")
    assert edited.value("human") == "Name: Bo"


async def test_text_that_occurs_once_is_replaced() -> None:
    edited = memory()
    await edited.memory_replace("human", "tea", "coffee")
    await edited.memory_replace("human", "Name: Ada\n", "")
    assert edited.value("human") == "Likes: coffee"


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("memory_insert", ("pets", "x"), "there is no block 'pets'; there are: human, rules"),
        ("memory_insert", ("rules", "x"), "block 'rules' is read-only"),
        ("memory_insert", ("human", "x", 3), "insert_line 3 is outside of block 'human', which has 2 lines"),
        ("memory_insert", ("human", "x", -2), "insert_line -2 is outside"),
        ("memory_insert", ("human", "x" * 50), "block 'human' would have 71 characters; its limit is 60"),
        ("memory_replace", ("human", "milk", "x"), "old_str was not found in block 'human'"),
        ("memory_replace", ("human", "", "x"), "old_str was not found in block 'human'"),
        ("memory_replace", ("human", "e", "x"), "old_str stands 3 times in block 'human'"),
        ("memory_replace", ("rules", "kind", "x"), "block 'rules' is read-only"),
        ("memory_replace", ("human", "tea", "t" * 61), "its limit is 60"),
    ],
)
async def test_a_refused_edit_has_a_reason_and_changes_nothing(
    tool: str, arguments: tuple[Any, ...], reason: str
) -> None:
    edited = memory()
    with pytest.raises(ValueError, match=reason):
        await getattr(edited, tool)(*arguments)
    assert edited.edited == {}


def test_the_prompt_shows_the_current_value_of_each_block() -> None:
    prompt = memory(human="Name: Bo").prompt()
    assert prompt == (
        "<memory_blocks>\n"
        '<block label="human">\n<description>Who it is about.</description>\n<size>8 of 60 characters</size>\n'
        "<value>\nName: Bo\n</value>\n</block>\n"
        '<block label="rules">\n<size>8 of 20,000 characters, read-only</size>\n'
        "<value>\nBe kind.\n</value>\n</block>\n"
        "</memory_blocks>"
    )
    assert RunMemory().prompt() == ""


def test_there_are_memory_tools_only_if_a_block_can_be_edited() -> None:
    assert memory_tools([RULES], 1.0) == memory_tools([], 1.0) == {}
    insert = memory_tools([HUMAN], 1.0)["memory_insert"].spec
    assert insert.parameters["required"] == ["label", "new_str"]
    assert insert.parameters["properties"]["insert_line"]["default"] == -1
    assert insert.description == "Insert text into a memory block as lines of its own."


async def test_a_model_edits_its_memory_by_tools_and_sees_refusals(attempt_runner: AttemptRunner) -> None:
    asked = calls(
        ("memory_insert", {"label": "human", "new_str": "Age: 36"}),
        ("memory_replace", {"label": "human", "old_str": "tea", "new_str": "coffee"}),
        ("memory_replace", {"label": "rules", "old_str": "kind", "new_str": "rude"}),
    )
    agent = bound(script=[asked, {"text": "noted"}], memory_blocks=[HUMAN, RULES])
    talk = Conversation(attempt_runner, agent)
    report, messages = await talk.ask()
    assert report.memory == {"human": "Name: Ada\nLikes: coffee\nAge: 36"}
    assert [status for status, _ in returns(messages)] == ["success", "success", "error"]
    assert returns(messages)[2][1] == "ValueError: block 'rules' is read-only"
    report, messages = await talk.ask()
    assert returns(messages)[1] == (
        "error",
        "ValueError: old_str was not found in block 'human'; it has to stand there exactly once",
    )


async def test_two_runs_do_not_share_their_memory(attempt_runner: AttemptRunner) -> None:
    agent = bound(
        script=[calls(("memory_insert", {"label": "human", "new_str": "x"})), {"text": "noted"}], memory_blocks=[HUMAN]
    )
    reports = [(await Conversation(attempt_runner, agent).ask())[0] for _ in range(2)]
    assert [report.memory for report in reports] == [{"human": "Name: Ada\nLikes: tea\nx"}] * 2


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"memory_blocks": [HUMAN, HUMAN]}, "two memory blocks are labelled 'human'"),
        ({"memory_blocks": [{"label": "<a>"}]}, "String should match pattern"),
        (
            {"memory_blocks": [{"label": "a", "value": "xy", "limit": 1}]},
            "the value of block 'a' has 2 characters of 1",
        ),
        ({"max_cost_usd": 1.0}, "max_cost_usd needs prices"),
    ],
)
def test_contradictory_memory_settings_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Agent.model_validate({"id": "a", "model": "offline/rules", **fields})
