"""Checkpoints: a run saves its work step by step, and an attempt that continues it repeats none of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchray.agents import (
    AttemptReport,
    AttemptRunner,
    CheckpointedRun,
    CheckpointSink,
    RunUpdate,
    encode_input,
    pump_checkpoints,
    read_report,
)
from batchray.config import Agent, BoundAgent, Tool, bind_agents
from batchray.executors.ray.checkpointed_runs import CheckpointedRuns, run_isolated
from batchray.schema import Message, new_job_id
from batchray.schema.visible import letta_messages
from batchray.support.timeouts import paused
from tests.builders.virtual_time import in_virtual_time
from tests.polling import run_pending_tasks

JOB = new_job_id()
_done: list[str] = []


def note(text: str) -> str:
    _done.append(text)
    return f"noted {text}"


def asks(*texts: str) -> dict[str, Any]:
    return {"text": "hm", "tool_calls": [{"name": "note", "arguments": {"text": text}} for text in texts]}


SCRIPT = [asks("a"), asks("b", "c", "d"), asks("e"), {"text": "done"}]
REQUEST = b'{"agent_id": "a", "input": "hi"}'
N_CHECKPOINTS = 3 + 5  # one an answer with calls, one a return


def stepped(**fields: Any) -> BoundAgent:
    agent = {"id": "a", "model": "offline/scripted", "script": SCRIPT, "tools": [note], **fields}
    return bind_agents([Agent.model_validate(agent)], environment={}).agents["a"]


@pytest.fixture
async def attempt_runner() -> AsyncIterator[AttemptRunner]:
    _done.clear()
    made = AttemptRunner()
    yield made
    await made.close()


async def run_from(
    attempt_runner: AttemptRunner,
    checkpoints: Sequence[bytes],
    agent: BoundAgent | None = None,
    request: bytes = REQUEST,
    history: Sequence[Any] = (),
) -> tuple[list[bytes], AttemptReport]:
    """Run from these checkpoints to the end; return the new checkpoints and the report."""
    agent, saved = agent or stepped(), list[bytes]()
    context = orjson.dumps({"steps": [orjson.Fragment(each) for each in checkpoints], "history": history})
    item = encode_input(JOB, 0, 1, request, context)
    run = CheckpointedRun(lambda sink: attempt_runner.run_attempt(agent, item, sink))

    async def save(fetched: Sequence[bytes]) -> None:
        saved.extend(fetched)

    try:
        return saved, read_report(await pump_checkpoints(run.fetch, save))
    finally:
        await run.close()


def message_content(report: AttemptReport) -> list[Any]:
    """Return the content of the messages, and the ids derived from their position."""
    messages = [Message.model_validate(each) for each in json.loads(report.messages)]
    return [
        (message.id, view.model_dump(exclude={"date", "step_id"}))
        for message in messages
        for view in letta_messages(message)
    ]


@pytest.mark.parametrize("n_saved", range(N_CHECKPOINTS + 1))
async def test_a_run_continues_from_any_checkpoint_without_repeating_saved_work(
    attempt_runner: AttemptRunner, n_saved: int
) -> None:
    saved, whole = await run_from(attempt_runner, [])
    assert len(saved) == N_CHECKPOINTS
    assert sorted(_done) == list("abcde")
    returned = {given["tool_call_id"] for each in saved[:n_saved] for given in json.loads(each)["returns"]}
    _done.clear()

    rest, again = await run_from(attempt_runner, saved[:n_saved])
    assert message_content(again) == message_content(whole)
    assert (again.usage, again.stop_reason) == (whole.usage, whole.stop_reason)
    assert len(_done) == 5 - len(returned)
    assert len(rest) == N_CHECKPOINTS - n_saved


async def test_no_tool_runs_before_its_call_is_saved(attempt_runner: AttemptRunner) -> None:
    item = encode_input(JOB, 0, 1, REQUEST)
    run = CheckpointedRun(lambda sink: attempt_runner.run_attempt(stepped(), item, sink))
    [said_first] = (await run.fetch(0)).checkpoints
    assert json.loads(said_first)["messages"]
    await run_pending_tasks()
    assert _done == []
    [returned] = (await run.fetch(1)).checkpoints
    assert (json.loads(returned)["returns"][0]["func_response"], _done) == ("noted a", ["a"])
    await run_pending_tasks()
    assert (await run.fetch(1)).checkpoints[0] == returned
    said_second = (await run.fetch(2)).checkpoints[0]
    await run_pending_tasks()
    assert _done == ["a"]
    assert json.loads(said_second)["usage"]["step_count"] == 2
    await run.close()


async def test_an_idempotent_tool_starts_before_its_call_is_saved_but_after_the_step_before_is(
    attempt_runner: AttemptRunner,
) -> None:
    async def look(text: str) -> str:
        return note(text)

    async def pay(text: str) -> str:
        return note(f"{text} paid")

    asked = {"tool_calls": [{"name": name, "arguments": {"text": "a"}} for name in ("pay", "look")]}
    idempotent = Tool(function=look, idempotent=True)
    agent = stepped(tools=[pay, idempotent], script=[asked, {"tool_calls": asked["tool_calls"][1:]}, {"text": "done"}])
    run = CheckpointedRun(lambda sink: attempt_runner.run_attempt(agent, encode_input(JOB, 0, 1, REQUEST), sink))
    await run.fetch(0)
    await run_pending_tasks()
    assert _done == ["a"]
    said, looked = (await run.fetch(0)).checkpoints  # in this order, so that no return is stored before its call
    assert (len(json.loads(said)["messages"]), len(json.loads(looked)["returns"])) == (1, 1)
    await run.fetch(1)
    await run_pending_tasks()
    assert _done == ["a", "a paid"]
    returns = (await run.fetch(1)).checkpoints
    assert [len(json.loads(each)["returns"]) for each in returns] == [1, 1]
    await run.fetch(3)
    await run_pending_tasks()
    assert _done == ["a", "a paid", "a"]
    assert (await run.fetch(3)).report is not None
    await run.close()


async def test_a_run_of_idempotent_tools_has_at_most_one_step_that_is_not_saved(attempt_runner: AttemptRunner) -> None:
    agent = stepped(tools=[Tool(function=note, idempotent=True)])
    run = CheckpointedRun(lambda sink: attempt_runner.run_attempt(agent, encode_input(JOB, 0, 1, REQUEST), sink))
    n_saved = 0
    for n_returns, done in ((1, "a"), (3, "abcd")):
        while len(checkpoints := (await run.fetch(n_saved)).checkpoints) < 1 + n_returns:
            await run_pending_tasks()
        await run_pending_tasks()
        assert sorted(_done) == list(done)
        n_saved += len(checkpoints)
    while (await run.fetch(n_saved)).report is None:  # nothing waits for the last step, which the report has too
        await run_pending_tasks()
    assert sorted(_done) == list("abcde")
    await run.close()


async def test_a_run_of_idempotent_tools_continues_from_any_checkpoint(attempt_runner: AttemptRunner) -> None:
    agent = stepped(tools=[Tool(function=note, idempotent=True)])
    saved, whole = await run_from(attempt_runner, [], agent)
    for n_saved in range(len(saved) + 1):
        _, again = await run_from(attempt_runner, saved[:n_saved], agent)
        assert message_content(again) == message_content(whole)
        assert (again.usage, again.stop_reason) == (whole.usage, whole.stop_reason)


async def test_a_saved_step_with_a_terminal_tool_ends_the_next_attempt(attempt_runner: AttemptRunner) -> None:
    agent = stepped(terminal_tools=["note"])
    saved, whole = await run_from(attempt_runner, [], agent)
    _done.clear()
    _, again = await run_from(attempt_runner, saved, agent)
    assert (again.stop_reason, message_content(again), _done) == ("tool_rule", message_content(whole), [])


async def test_saved_steps_count_towards_max_steps(attempt_runner: AttemptRunner) -> None:
    agent = stepped(max_steps=2)
    saved, whole = await run_from(attempt_runner, [], agent)
    for n_saved in range(len(saved) + 1):
        _, again = await run_from(attempt_runner, saved[:n_saved], agent)
        assert (again.stop_reason, again.usage["step_count"], message_content(again)) == (
            "max_steps",
            2,
            message_content(whole),
        )


async def test_a_paused_step_is_finished_once(attempt_runner: AttemptRunner) -> None:
    agent = stepped(requires_approval=["note"], script=[asks("b", "c"), {"text": "done"}])
    _, paused = await run_from(attempt_runner, [], agent)
    assert paused.stop_reason == "requires_approval"
    asked = {"id": "message-1", "role": "user", "content": [{"type": "text", "text": "hi"}]}
    history = [{**asked, "created_at": "2026-01-01T00:00:00Z"}, *json.loads(paused.messages)]
    answers = [{"type": "approval", "tool_call_id": call_id, "approve": True} for call_id in paused.pending]
    approval = [{"type": "approval", "approvals": answers}]
    request = json.dumps({"agent_id": "a", "messages": approval}).encode()
    saved, whole = await run_from(attempt_runner, [], agent, request, history)
    assert (whole.stop_reason, sorted(_done), len(saved)) == ("end_turn", ["b", "c"], 2)
    for n_saved in range(len(saved) + 1):
        _done.clear()
        _, again = await run_from(attempt_runner, saved[:n_saved], agent, request, history)
        assert (message_content(again), len(_done)) == (message_content(whole), 2 - n_saved)


async def test_memory_is_restored_from_checkpoints(attempt_runner: AttemptRunner) -> None:
    edit = {"name": "memory_insert", "arguments": {"label": "facts", "new_str": "one"}}
    script = [{"tool_calls": [edit]}, {"tool_calls": [edit]}, {"text": "done"}]
    agent = stepped(script=script, tools=[], memory_blocks=[{"label": "facts"}], stateful=True)
    saved, whole = await run_from(attempt_runner, [], agent)
    assert whole.memory == {"facts": "one\none"}
    for n_saved in range(len(saved) + 1):
        _, again = await run_from(attempt_runner, saved[:n_saved], agent)
        assert again.memory == whole.memory, n_saved
        assert again.memory_bases == whole.memory_bases == {"facts": ""}, n_saved
    older = [orjson.dumps({**orjson.loads(each), "memory_bases": None}) for each in saved]  # which had no bases
    _, again = await run_from(attempt_runner, older[:2], agent)
    assert (again.memory, again.memory_bases) == (whole.memory, {"facts": ""})


async def test_edits_of_memory_beside_other_tools_happen_once_and_in_order(attempt_runner: AttemptRunner) -> None:
    edits = [{"name": "memory_insert", "arguments": {"label": "facts", "new_str": word}} for word in ("one", "two")]
    noting = {"name": "note", "arguments": {"text": "a"}}
    script = [{"tool_calls": [noting, edits[0], noting, edits[1]]}, {"text": "done"}]
    agent = stepped(script=script, memory_blocks=[{"label": "facts"}], stateful=True)
    saved, whole = await run_from(attempt_runner, [], agent)
    assert (len(saved), whole.memory) == (5, {"facts": "one\ntwo"})
    for n_saved in range(len(saved) + 1):
        _, again = await run_from(attempt_runner, saved[:n_saved], agent)
        assert (again.memory, message_content(again)) == (whole.memory, message_content(whole)), n_saved


def test_checkpoints_are_saved_only_for_agents_with_several_steps() -> None:
    assert stepped().agent.keeps_steps
    assert not stepped(max_steps=1).agent.keeps_steps
    assert not stepped(tools=[]).agent.keeps_steps
    assert not Agent(id="f", run=note).keeps_steps


def test_a_run_on_its_own_loop_waits_until_its_checkpoint_is_saved() -> None:
    _done.clear()
    fetched = run_isolated(stepped(), encode_input(JOB, 0, 1, REQUEST))
    n_checkpoints, report = 0, None
    for each in fetched:
        if not isinstance(each, RunUpdate):
            continue
        n_checkpoints, report = n_checkpoints + len(each.checkpoints), each.report
        if n_checkpoints < 2:
            assert set(_done) <= {"a"}
    assert report is not None
    assert (n_checkpoints, read_report(report).status) == (N_CHECKPOINTS, "succeeded")


def test_an_agent_whose_code_cannot_be_imported_fails_its_request_and_is_imported_once(tmp_path: Path) -> None:
    imports = tmp_path / "imports"
    module = f"with open({str(imports)!r}, 'a') as file:\n    file.write('x')\nraise LookupError('no')\n"
    (tmp_path / "cannot_be_imported.py").write_text(module)
    agents = bind_agents([Agent(id="a", run="cannot_be_imported:run")], environment={}, import_paths=[str(tmp_path)])
    ready, fetched = run_isolated(agents.agents["a"], encode_input(JOB, 0, 1, REQUEST))
    assert ready is None
    assert isinstance(fetched, RunUpdate)
    assert fetched.report is not None
    report = read_report(fetched.report)
    assert (report.status, report.error and report.error["type"]) == ("errored", "config_error")
    assert imports.read_text() == "x"


@in_virtual_time
async def test_waiting_for_the_store_does_not_count_towards_the_deadline() -> None:
    async def note(text: str) -> str:  # on the event loop: virtual time does not wait for threads
        return text

    class Slow:
        """A sink that saves slowly."""

        def add(self, checkpoint: bytes) -> None:
            pass

        async def flush(self) -> None:
            await asyncio.sleep(20)

    attempt_runner = AttemptRunner()
    report = await attempt_runner.run_attempt(
        stepped(deadline_s=30, tools=[note]), encode_input(JOB, 0, 1, REQUEST), Slow()
    )
    assert read_report(report).status == "succeeded"
    assert asyncio.get_running_loop().time() > 30
    await attempt_runner.close()


@in_virtual_time
async def test_a_paused_time_limit_keeps_the_time_that_was_left() -> None:
    limit = asyncio.timeout(0.1)

    async def wait_twice() -> None:
        async with limit:
            with paused(limit):
                await asyncio.sleep(0.2)
            assert not limit.expired()
            await asyncio.sleep(3600)

    with pytest.raises(TimeoutError):
        await wait_twice()
    with paused(limit):  # an expired limit stays expired
        pass
    async with asyncio.timeout(None) as unlimited:
        with paused(unlimited):
            pass
        assert unlimited.when() is None
    with paused(unlimited):
        pass


# A lane's runs.


async def test_checkpoints_are_returned_until_they_are_acknowledged() -> None:
    runs = CheckpointedRuns()

    async def start(sink: CheckpointSink) -> bytes:
        sink.add(b"one")
        await sink.flush()
        return b"report"

    call = asyncio.ensure_future(runs.run("k", start))
    for _ in range(2):  # the first response may be lost
        assert await runs.collect({}) == {"k": [b"one"]}
    assert not call.done()
    await asyncio.gather(runs.collect({"k": 1}), call)
    assert call.result() == b"report"


async def test_checkpoints_of_all_runs_are_collected_together() -> None:
    runs = CheckpointedRuns()

    def start(name: bytes) -> Any:
        async def run(sink: CheckpointSink) -> bytes:
            for number in (b"1", b"2"):
                sink.add(name + number)
                await sink.flush()
            return name

        return run

    reports = [asyncio.ensure_future(runs.run(key, start(key.encode()))) for key in "ab"]
    await run_pending_tasks()
    assert await runs.collect({}) == {"a": [b"a1"], "b": [b"b1"]}
    assert await runs.collect({"a": 1, "unknown": 7}) == {"b": [b"b1"]}
    await run_pending_tasks()
    assert await runs.collect({"b": 1}) == {"a": [b"a2"]}
    await run_pending_tasks()
    assert await runs.collect({"a": 2}) == {"b": [b"b2"]}
    await asyncio.gather(runs.collect({"b": 2}), *reports)
    await run_pending_tasks()
    assert runs._checkpoints == {}


async def test_an_idle_collection_returns_empty() -> None:
    assert await CheckpointedRuns(collect_s=0.0).collect({}) == {}


async def test_a_run_that_is_being_stopped_returns_no_more_checkpoints() -> None:
    runs = CheckpointedRuns(collect_s=0.0)

    async def stubborn(sink: CheckpointSink) -> bytes:
        sink.add(b"one")
        await sink.flush()
        return b""

    call = asyncio.ensure_future(runs.run("k", stubborn))
    await run_pending_tasks()
    runs.drop(["k", "unknown"])
    assert await runs.collect({}) == {}
    call.cancel()
    await asyncio.wait([call])
