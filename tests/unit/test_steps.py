"""What a run has done is handed out step by step, and an attempt that takes it up does none of it again."""

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
    encode_input,
    pump_checkpoints,
    read_report,
)
from batchray.config import Agent, BoundAgent, bind_agents
from batchray.executors.ray.checkpointed_runs import CheckpointedRuns, run_isolated
from batchray.schema import Message, letta_messages, new_job_id
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
async def answerer() -> AsyncIterator[AttemptRunner]:
    _done.clear()
    made = AttemptRunner()
    yield made
    await made.close()


async def run_from(
    answerer: AttemptRunner,
    checkpoints: Sequence[bytes],
    agent: BoundAgent | None = None,
    request: bytes = REQUEST,
    history: Sequence[Any] = (),
) -> tuple[list[bytes], AttemptReport]:
    """Run from what is kept to the end; returns what was kept besides."""
    agent, kept = agent or stepped(), list[bytes]()
    context = orjson.dumps({"steps": [orjson.Fragment(each) for each in checkpoints], "history": history})
    item = encode_input(JOB, 0, 1, request, context)
    run = CheckpointedRun(lambda sink: answerer.run_attempt(agent, item, sink))

    async def keep(fetched: Sequence[bytes]) -> None:
        kept.extend(fetched)

    try:
        return kept, read_report(await pump_checkpoints(run.fetch, keep))
    finally:
        await run.close()


def said(report: AttemptReport) -> list[Any]:
    """What the messages say, and the ids that follow from their place."""
    messages = [Message.model_validate(each) for each in json.loads(report.messages)]
    return [
        (message.id, view.model_dump(exclude={"date", "step_id"}))
        for message in messages
        for view in letta_messages(message)
    ]


@pytest.mark.parametrize("n_kept", range(N_CHECKPOINTS + 1))
async def test_wherever_a_run_is_cut_it_goes_on_without_repeating_what_is_kept(
    answerer: AttemptRunner, n_kept: int
) -> None:
    kept, whole = await run_from(answerer, [])
    assert len(kept) == N_CHECKPOINTS
    assert sorted(_done) == list("abcde")
    returned = {given["tool_call_id"] for each in kept[:n_kept] for given in json.loads(each)["returns"]}
    _done.clear()

    rest, again = await run_from(answerer, kept[:n_kept])
    assert said(again) == said(whole)
    assert (again.usage, again.stop_reason) == (whole.usage, whole.stop_reason)
    assert len(_done) == 5 - len(returned)
    assert len(rest) == N_CHECKPOINTS - n_kept


async def test_no_tool_runs_before_its_call_is_kept(answerer: AttemptRunner) -> None:
    item = encode_input(JOB, 0, 1, REQUEST)
    run = CheckpointedRun(lambda sink: answerer.run_attempt(stepped(), item, sink))
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


async def test_a_step_that_a_terminal_tool_ended_ends_the_run_where_it_is_taken_up(answerer: AttemptRunner) -> None:
    agent = stepped(terminal_tools=["note"])
    kept, whole = await run_from(answerer, [], agent)
    _done.clear()
    _, again = await run_from(answerer, kept, agent)
    assert (again.stop_reason, said(again), _done) == ("tool_rule", said(whole), [])


async def test_steps_that_are_kept_count_towards_max_steps(answerer: AttemptRunner) -> None:
    agent = stepped(max_steps=2)
    kept, whole = await run_from(answerer, [], agent)
    for n_kept in range(len(kept) + 1):
        _, again = await run_from(answerer, kept[:n_kept], agent)
        assert (again.stop_reason, again.usage["step_count"], said(again)) == ("max_steps", 2, said(whole))


async def test_a_step_that_waited_for_the_caller_is_finished_once(answerer: AttemptRunner) -> None:
    agent = stepped(requires_approval=["note"], script=[asks("b", "c"), {"text": "done"}])
    _, paused = await run_from(answerer, [], agent)
    assert paused.stop_reason == "requires_approval"
    asked = {"id": "message-1", "role": "user", "content": [{"type": "text", "text": "hi"}]}
    history = [{**asked, "created_at": "2026-01-01T00:00:00Z"}, *json.loads(paused.messages)]
    answers = [{"type": "approval", "tool_call_id": call_id, "approve": True} for call_id in paused.pending]
    approval = [{"type": "approval", "approvals": answers}]
    request = json.dumps({"agent_id": "a", "messages": approval}).encode()
    kept, whole = await run_from(answerer, [], agent, request, history)
    assert (whole.stop_reason, sorted(_done), len(kept)) == ("end_turn", ["b", "c"], 2)
    for n_kept in range(len(kept) + 1):
        _done.clear()
        _, again = await run_from(answerer, kept[:n_kept], agent, request, history)
        assert (said(again), len(_done)) == (said(whole), 2 - n_kept)


async def test_memory_is_what_the_kept_steps_made_of_it(answerer: AttemptRunner) -> None:
    edit = {"name": "memory_insert", "arguments": {"label": "facts", "new_str": "one"}}
    script = [{"tool_calls": [edit]}, {"tool_calls": [edit]}, {"text": "done"}]
    agent = stepped(script=script, tools=[], memory_blocks=[{"label": "facts"}], stateful=True)
    kept, whole = await run_from(answerer, [], agent)
    assert whole.memory == {"facts": "one\none"}
    for n_kept in range(len(kept) + 1):
        _, again = await run_from(answerer, kept[:n_kept], agent)
        assert again.memory == whole.memory, n_kept


def test_steps_are_kept_only_of_agents_that_may_take_several() -> None:
    assert stepped().agent.keeps_steps
    assert not stepped(max_steps=1).agent.keeps_steps
    assert not stepped(tools=[]).agent.keeps_steps
    assert not Agent(id="f", run=note).keeps_steps


def test_a_run_on_a_loop_of_its_own_stands_still_until_what_it_did_is_kept() -> None:
    _done.clear()
    fetched = run_isolated(stepped(), encode_input(JOB, 0, 1, REQUEST))
    n_checkpoints, report = 0, None
    for each in fetched:
        if each is None:
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
    assert fetched is not None
    assert fetched.report is not None
    report = read_report(fetched.report)
    assert (report.status, report.error and report.error["type"]) == ("errored", "config_error")
    assert imports.read_text() == "x"


@in_virtual_time
async def test_the_time_for_which_a_run_waits_for_the_store_does_not_count_towards_its_deadline() -> None:
    async def note(text: str) -> str:  # on the event loop: virtual time does not wait for threads
        return text

    class Slow:
        """Keeps what is done, and takes its time."""

        def add(self, checkpoint: bytes) -> None:
            pass

        async def flush(self) -> None:
            await asyncio.sleep(20)

    answerer = AttemptRunner()
    report = await answerer.run_attempt(stepped(deadline_s=30, tools=[note]), encode_input(JOB, 0, 1, REQUEST), Slow())
    assert read_report(report).status == "succeeded"
    assert asyncio.get_running_loop().time() > 30
    await answerer.close()


@in_virtual_time
async def test_a_limit_goes_on_where_it_was_after_what_does_not_count() -> None:
    limit = asyncio.timeout(0.1)

    async def wait_twice() -> None:
        async with limit:
            with paused(limit):
                await asyncio.sleep(0.2)
            assert not limit.expired()
            await asyncio.sleep(3600)

    with pytest.raises(TimeoutError):
        await wait_twice()
    with paused(limit):  # one that is over stays as it is
        pass
    async with asyncio.timeout(None) as unlimited:
        with paused(unlimited):
            pass
        assert unlimited.when() is None
    with paused(unlimited):
        pass


# A lane's runs.


async def test_what_a_run_has_done_is_handed_out_until_it_is_kept() -> None:
    runs = CheckpointedRuns()

    async def start(sink: CheckpointSink) -> bytes:
        sink.add(b"one")
        await sink.flush()
        return b"report"

    call = asyncio.ensure_future(runs.run("k", start))
    for _ in range(2):  # the first answer may have got lost
        assert await runs.collect({}) == {"k": [b"one"]}
    assert not call.done()
    await asyncio.gather(runs.collect({"k": 1}), call)
    assert call.result() == b"report"


async def test_what_all_runs_have_done_is_collected_at_once() -> None:
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


async def test_where_nothing_happens_the_collector_is_told_so() -> None:
    assert await CheckpointedRuns(collect_s=0.0).collect({}) == {}


async def test_of_a_run_that_is_being_stopped_nothing_more_is_handed_out() -> None:
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
