"""State that carries over from one request to the next: approvals, conversations and memory."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batchray.config import Agent, AgentSet, bind_agents, load_settings
from batchray.errors import ApprovalError, JobInterruptedError
from batchray.executors import AttemptSpec, LocalExecutor
from batchray.jobs.context import messages_of
from batchray.jobs.driver import run_job, start_job
from batchray.jobs.idle import cancel_idle_job
from batchray.jobs.running import RunningJob
from batchray.jobs.slots import Slots
from batchray.schema import (
    AgentRequest,
    ApprovalRequestMessage,
    Message,
    Result,
    ToolCall,
    message_id,
    new_job_id,
)
from batchray.store import (
    DEFAULT_USER,
    ConversationUpdate,
    HistoryItem,
    JobRecord,
    NewAttempt,
    NewItem,
    NewJob,
    NewOutcome,
    Store,
    run_all,
)
from batchray.store.tables import outcomes
from batchray.views.results import ResultViews
from tests.builders.agents import calls
from tests.builders.jobs import Scripted
from tests.polling import wait_until


def drop(key: str) -> str:
    return f"{key} is gone"


def echo(request: AgentRequest) -> str:
    return f"echo {request.input}"


def asking(*keys: str) -> dict[str, Any]:
    return calls(*(("drop", {"key": key}) for key in keys))


def guarded(*turns: Mapping[str, Any], id: str = "guarded", **fields: Any) -> Agent:
    """An agent whose tool `drop` waits for an approval."""
    return Agent(id=id, model="offline/scripted", script=turns, tools=(drop,), requires_approval=("drop",), **fields)


def noting(id: str, **fields: Any) -> Agent:
    """A stateful agent that says what its requests' scripts say."""
    return Agent(id=id, model="offline/scripted", stateful=True, **fields)


def script(*turns: Mapping[str, Any]) -> str:
    return json.dumps({"script": turns})


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = request.getfixturevalue("database").new_url() if request.param == "postgres" else None
    with Store.open(tmp_path / "data", url) as opened:
        yield opened


@pytest.fixture
async def local_store(tmp_path: Path) -> AsyncIterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


def new_job(store: Store, *requests: Mapping[str, Any], user_id: str = DEFAULT_USER) -> str:
    job_id = new_job_id()
    items = [NewItem(each["agent_id"], None, json.dumps(each).encode()) for each in requests]
    store.jobs.create(NewJob(job_id, lambda ids: {}, user_id=user_id), items)
    return job_id


async def started(store: Store, job_id: str, *agents: Agent, slots: Slots | None = None, **settings: Any) -> RunningJob:
    bound: AgentSet = bind_agents(list(agents), environment={})
    return await start_job(job_id, bound, store, load_settings(executor="local", **settings), slots)


def results_of(store: Store, record: JobRecord) -> list[Result]:
    results: list[Result] = []
    while page := store.items.results(record, after_index=len(results) - 1):
        results += [ResultViews(record).result(each) for each in page]
    return results


async def run(store: Store, agents: Agent | list[Agent], *requests: Mapping[str, Any], **options: Any) -> list[Result]:
    agents = [agents] if isinstance(agents, Agent) else agents
    job = await started(store, new_job(store, *requests, **options), *agents)
    return results_of(store, await run_job(job, LocalExecutor()))


def ask(text: str = "hi", agent_id: str = "guarded") -> dict[str, Any]:
    return {"agent_id": agent_id, "input": text}


def answer(*ids: str, approve: bool = True, agent_id: str = "guarded", **fields: Any) -> dict[str, Any]:
    approvals = [{"type": "approval", "tool_call_id": each, "approve": approve} for each in ids]
    return {"agent_id": agent_id, "messages": [{"type": "approval", "approvals": approvals, **fields}]}


def waiting(result: Result) -> list[str]:
    """The ids of the calls that a result waits with."""
    assert result.stop_reason == "requires_approval", result
    [asked] = [each for each in result.messages if isinstance(each, ApprovalRequestMessage)]
    assert isinstance(asked.tool_calls, list)
    return [call.tool_call_id or "" for call in asked.tool_calls]


def request_id(result: Result) -> str:
    """The id of the approval request that a result waits with."""
    return next(each.id for each in result.messages if isinstance(each, ApprovalRequestMessage))


def types(result: Result) -> list[str]:
    return [message.message_type for message in result.messages]


def said(result: Result) -> list[str]:
    return [str(getattr(message, "content", "")) for message in result.messages if hasattr(message, "content")]


def kinds(results: list[Result]) -> list[str]:
    return [each.error.type if each.error else str(each.stop_reason) for each in results]


# -- approvals


async def test_an_answer_in_another_batch_continues_the_run_at_its_approval(tmp_path: Path) -> None:
    agent = guarded(asking("a"), {"text": "done"})
    with Store.open(tmp_path / "data") as store:
        [asked] = await run(store, agent, ask("one"))
    with Store.open(tmp_path / "data") as store:  # as after a restart
        [answered] = await run(store, agent, answer(*waiting(asked)))
    assert (answered.status, answered.stop_reason, answered.usage.step_count) == ("succeeded", "end_turn", 1)
    assert types(answered) == ["tool_return_message", "assistant_message"]
    assert (answered.messages[0].model_dump()["tool_return"], said(answered)) == ("a is gone", ["done"])


async def test_a_run_that_waits_a_second_time_continues_with_its_whole_history(store: Store) -> None:
    seen: list[bytes] = []
    agent = guarded(asking("a"), asking("b"), {"text": "done"})
    [first] = await run(store, agent, ask())
    [second] = await run(store, agent, answer(*waiting(first)))
    job = await started(store, new_job(store, answer(*waiting(second), approve=False, otid="mine")), agent)
    record = await run_job(job, Scripted(lambda spec: seen.append(spec.context)))
    [third] = results_of(store, record)
    assert (third.stop_reason, said(third)) == ("end_turn", ["done"])
    history = json.loads(seen[0])["history"]
    assert [message["role"] for message in history] == ["user", "approval", "approval", "tool", "approval"]


async def test_several_runs_of_one_agent_wait_side_by_side(store: Store) -> None:
    agent = guarded(asking("a"), {"text": "done"})
    asked = await run(store, agent, ask("one"), ask("two"), ask("three"))
    answers = [answer(*waiting(each), approve=i != 1) for i, each in enumerate(asked)]
    answered = await run(store, agent, *reversed(answers))
    assert [each.messages[0].model_dump()["status"] for each in answered] == ["success", "error", "success"]


async def test_each_run_is_answered_by_a_request_of_its_own(store: Store) -> None:
    agent = guarded(asking("a"), {"text": "done"})
    one, two = await run(store, agent, ask("one"), ask("two"))
    [refused] = await run(store, agent, answer(*waiting(one), *waiting(two)))
    assert refused.error is not None
    assert (refused.error.type, "request of its own" in refused.error.message) == ("no_pending_approval", True)
    assert kinds(await run(store, agent, answer(*waiting(one)), answer(*waiting(two)))) == ["end_turn"] * 2


async def test_an_answer_counts_once(store: Store) -> None:
    agent = guarded(asking("a"), {"text": "done"})
    [asked] = await run(store, agent, ask())
    both = await run(store, agent, answer(*waiting(asked)), answer(*waiting(asked)))
    assert sorted(kinds(both)) == ["already_answered", "end_turn"]
    again = await run(store, agent, answer(*waiting(asked), approve=False))
    assert (kinds(again), again[0].stop_reason) == (["already_answered"], "invalid_tool_call")


async def test_answers_that_do_not_fit_fail_their_item_and_leave_the_run_waiting(store: Store) -> None:
    agent, other = guarded(asking("a", "b"), {"text": "done"}), guarded({"text": "hi"}, id="other")
    [asked] = await run(store, agent, ask())
    one, two = waiting(asked)
    results = await run(
        store,
        [agent, other],
        answer("nowhere"),
        answer(one),
        answer(one, two, "nowhere"),
        {"agent_id": "guarded", "messages": [*answer(one, two)["messages"], {"role": "user", "content": "and?"}]},
        answer(one, two, agent_id="other"),
        {"agent_id": "guarded", "messages": [{"type": "approval", "approve": True}]},
    )
    assert kinds(results) == [
        "no_pending_approval",
        "incomplete_approval",
        "no_pending_approval",
        "mixed_messages",
        "no_pending_approval",
        "no_pending_approval",
    ]
    assert {each.attempts for each in results} == {1}
    assert kinds(await run(store, agent, answer(one, two), user_id="user-2")) == ["no_pending_approval"]
    assert kinds(await run(store, agent, answer(two, one))) == ["end_turn"]


async def test_an_approval_may_name_the_request_instead_of_its_calls(store: Store) -> None:
    agent = guarded(asking("a", "b"), {"text": "done"})
    [asked] = await run(store, agent, ask())
    old_form = {"type": "approval", "approve": False, "approval_request_id": request_id(asked), "reason": "no"}
    [answered] = await run(store, agent, {"agent_id": "guarded", "messages": [old_form]})
    assert kinds([answered]) == ["end_turn"]
    assert {each["tool_return"] for each in answered.messages[0].model_dump()["tool_returns"]} == {
        "The call was denied: no"
    }


def paused(store: Store, call_id: str) -> str:
    """Record a run of the agent `guarded` that waits for a call of this id; returns its approval request's id."""
    record = store.jobs.start(new_job(store, ask()))
    asked = Message(
        id=message_id(record.id, 0, 1),
        role="approval",
        tool_calls=[ToolCall.of(call_id, "drop", '{"key": "a"}')],
        created_at=datetime.now(UTC),
    )
    messages = b"[" + asked.model_dump_json(exclude_none=True).encode() + b"]"
    conversation_update = ConversationUpdate("guarded", pending=[call_id])
    outcome = NewOutcome(
        index=0,
        attempt=1,
        status="succeeded",
        stop_reason="requires_approval",
        error=None,
        usage={},
        queued_ns=0,
        ttft_ns=None,
        duration_ns=1,
        messages=messages,
        conversation_update=conversation_update,
    )
    assert store.outcomes.write(record, [NewAttempt(0, 1)], [outcome]) == [outcome]
    return asked.id


async def test_runs_that_wait_for_calls_of_one_id_are_distinguished_by_their_request(store: Store) -> None:
    agent = guarded(asking("a"), {"text": "done"})
    _, two = paused(store, "call_0"), paused(store, "call_0")  # as servers do that number their calls
    assert kinds(await run(store, agent, answer("call_0"))) == ["ambiguous_approval"]
    named = answer("call_0", approval_request_id=two)
    assert sorted(kinds(await run(store, agent, named, named))) == ["already_answered", "end_turn"]
    assert kinds(await run(store, agent, answer("call_0"))) == ["end_turn"]


async def test_an_id_of_any_text_can_be_waited_for(store: Store) -> None:
    paused(store, "call \0 \u00e9")
    assert kinds(await run(store, guarded(asking("a"), {"text": "done"}), answer("call \0 \u00e9"))) == ["end_turn"]


async def test_two_processes_do_not_claim_one_run_both(store: Store) -> None:
    paused(store, "call_0")
    jobs = [store.jobs.start(new_job(store, answer("call_0"))) for _ in range(2)]
    load = functools.partial(store.conversations.load, is_stateful=False, answered=frozenset({"call_0"}))
    for _ in range(2):  # again, as after a lost answer
        found = load(jobs[0], 0, "guarded")
        assert found is not None
        assert len(found.history) == 1
    with pytest.raises(ApprovalError, match="already_answered"):
        load(jobs[1], 0, "guarded")


async def test_a_request_deleted_by_retention_is_neither_remembered_nor_answered(store: Store) -> None:
    agents = [guarded(asking("a"), {"text": "done"}), noting("notes")]
    asked, _ = await run(store, agents, ask(), ask(script({"text": "old"}), "notes"))
    while store.retention.prune("9999"):
        pass
    assert store.conversations.history(DEFAULT_USER, "notes") == []
    results = await run(store, agents, answer(*waiting(asked)), ask(script({"text": "new"}), "notes"))
    assert kinds(results) == ["no_pending_approval", "end_turn"]
    assert texts(store.conversations.history(DEFAULT_USER, "notes"))[-1] == "new"


async def test_an_item_that_was_interrupted_may_bring_its_answer_again(store: Store) -> None:
    agent = guarded(asking("a"), {"text": "done"})
    [asked] = await run(store, agent, ask())
    job_id = new_job(store, answer(*waiting(asked)))
    job = await started(store, job_id, agent)
    hanging = Scripted(lambda spec: asyncio.Event().wait())
    running = asyncio.create_task(run_job(job, hanging))
    await wait_until(lambda: hanging.running["all"] == 1)
    job.interrupt()
    with pytest.raises(JobInterruptedError):
        await running
    assert kinds(await run(store, agent, answer(*waiting(asked)))) == ["already_answered"]
    record = await run_job(await started(store, job_id, agent), LocalExecutor())
    assert kinds(results_of(store, record)) == ["end_turn"]


async def test_a_run_waits_again_after_the_item_that_answered_it_failed_or_was_canceled(store: Store) -> None:
    failing = guarded(asking("a"), {"fail": {"type": "api_error"}})
    [asked] = await run(store, failing, ask())
    assert kinds(await run(store, failing, answer(*waiting(asked)))) == ["api_error"]
    canceled = new_job(store, answer(*waiting(asked)))
    job = await started(store, canceled, failing)
    hanging = Scripted(lambda spec: asyncio.Event().wait())
    running = asyncio.create_task(run_job(job, hanging))
    await wait_until(lambda: hanging.running["all"] == 1)
    job.cancel()
    assert (await running).counts["canceled"] == 1
    working = guarded(asking("a"), {"text": "done"})
    assert kinds(await run(store, working, answer(*waiting(asked)))) == ["end_turn"]


async def test_a_run_waits_again_after_the_job_of_its_answer_was_canceled_while_idle(store: Store) -> None:
    agent = guarded(asking("a"), {"text": "done"})
    [asked] = await run(store, agent, ask())
    job_id = new_job(store, answer(*waiting(asked)))
    store.conversations.load(
        store.jobs.start(job_id), 0, "guarded", is_stateful=False, answered=frozenset(waiting(asked))
    )
    run_all(cancel_idle_job(store, job_id))
    assert kinds(await run(store, agent, answer(*waiting(asked)))) == ["end_turn"]


async def test_memory_that_was_edited_before_the_wait_is_there_after_it(store: Store) -> None:
    edit = calls(("memory_insert", {"label": "human", "new_str": "Ada"}))
    again = calls(("memory_replace", {"label": "human", "old_str": "Ada", "new_str": "Bo"}))
    agent = guarded(edit, asking("a"), again, {"text": "done"}, memory_blocks=({"label": "human"},))
    [asked] = await run(store, agent, ask())
    [answered] = await run(store, agent, answer(*waiting(asked)))
    returned = [each.model_dump()["status"] for each in answered.messages if hasattr(each, "tool_return")]
    assert (answered.stop_reason, returned) == ("end_turn", ["success", "success"])
    assert store.conversations.memory(DEFAULT_USER, "guarded") == {}


# -- conversations and memory


def texts(history: list[HistoryItem]) -> list[str]:
    messages = [message for prior in history for message in messages_of(prior)]
    return [message.text for message in messages if message.text]


async def test_only_a_stateful_agent_gets_its_earlier_messages(store: Store) -> None:
    seen: dict[str, list[int]] = defaultdict(list)

    def look(spec: AttemptSpec) -> None:
        context = json.loads(spec.context) if spec.context else {"history": []}
        seen[spec.agent.agent.id].append(len(context["history"]))

    agents = [noting("notes"), Agent(id="fresh", model="offline/rules")]
    requests = [ask("hello", agent_id) for agent_id in ("notes", "fresh")] * 3
    requests = [
        {**each, "input": script({"text": f"answer {i}"})} if each["agent_id"] == "notes" else each
        for i, each in enumerate(requests)
    ]
    for _ in range(2):
        job = await started(store, new_job(store, *requests), *agents)
        await run_job(job, Scripted(look))
    assert seen == {"notes": [0, 2, 4, 6, 8, 10], "fresh": [0] * 6}
    history = store.conversations.history(DEFAULT_USER, "notes")
    ids = [message.id for prior in history for message in messages_of(prior)]
    places = store.conversations.places(DEFAULT_USER, "notes")
    assert store.conversations.items_at(places[::-1]) == history[::-1]
    answers = [text for text in texts(history) if text.startswith("answer")]
    assert answers == ["answer 0", "answer 2", "answer 4"] * 2
    assert store.conversations.history("user-2", "notes") == store.conversations.history(DEFAULT_USER, "fresh") == []
    with store.database.transaction() as connection:  # the ids are known without the messages, which may be large
        connection.execute(sa.update(outcomes).values(messages=b"unread"))
    places = store.conversations.places(DEFAULT_USER, "notes")
    assert [each for place in places for each in place.message_ids] == ids


async def test_a_request_that_failed_leaves_no_trace_in_the_conversation(store: Store) -> None:
    agent = noting("notes", memory_blocks=({"label": "human", "value": "?"},))
    edit = calls(("memory_replace", {"label": "human", "old_str": "?", "new_str": "Ada"}))
    results = await run(
        store,
        agent,
        ask(script(edit, {"fail": {"type": "api_error"}}), "notes"),
        ask(script(edit, {"text": "noted"}), "notes"),
    )
    assert kinds(results) == ["api_error", "end_turn"]
    assert [prior.index for prior in store.conversations.history(DEFAULT_USER, "notes")] == [1]
    assert store.conversations.memory(DEFAULT_USER, "notes") == {"human": "Ada"}
    store.conversations.delete(DEFAULT_USER, "notes")
    assert store.conversations.history(DEFAULT_USER, "notes") == []
    assert store.conversations.memory(DEFAULT_USER, "notes") == {"human": "Ada"}
    store.conversations.delete(DEFAULT_USER, "notes", with_memory=True)
    assert store.conversations.memory(DEFAULT_USER, "notes") == {}


async def test_the_next_request_sees_the_memory_as_the_one_before_left_it(store: Store) -> None:
    agent = noting("notes", memory_blocks=({"label": "human"},))
    requests = [
        ask(script(calls(("memory_insert", {"label": "human", "new_str": str(i)})), {"text": "noted"}), "notes")
        for i in range(5)
    ]
    await run(store, agent, *requests[:3])
    await run(store, agent, *requests[3:])
    assert store.conversations.memory(DEFAULT_USER, "notes") == {"human": "0\n1\n2\n3\n4"}


async def test_a_stateful_agent_that_waits_is_answered_before_it_is_asked_anything_else(store: Store) -> None:
    agent = guarded(stateful=True)
    wanting = ask(script(asking("a"), {"text": "done"}))
    asked, refused = await run(store, agent, wanting, ask(script({"text": "later"})))
    assert kinds([refused]) == ["pending_approval"]
    answered, later = await run(store, agent, answer(*waiting(asked)), ask(script({"text": "later"})))
    assert (kinds([answered, later]), said(later)) == (["end_turn", "end_turn"], ["later"])
    assert [prior.index for prior in store.conversations.history(DEFAULT_USER, "guarded")] == [0, 0, 1]


async def test_a_forgotten_conversation_has_nothing_to_answer(store: Store) -> None:
    agent = guarded(stateful=True)
    [asked] = await run(store, agent, ask(script(asking("a"), {"text": "done"})))
    store.conversations.delete(DEFAULT_USER, "guarded")
    assert kinds(await run(store, agent, answer(*waiting(asked)), ask(script({"text": "hi"})))) == [
        "no_pending_approval",
        "end_turn",
    ]


async def test_two_jobs_do_not_ask_a_stateful_agent_at_once(store: Store) -> None:
    slots = Slots()
    agents = [noting("notes"), Agent(id="free", model="offline/rules")]
    requests = [ask(script({"text": str(i)}), "notes") for i in range(10)] + [ask("hi", "free")]
    jobs = [await started(store, new_job(store, *requests), *agents, slots=slots) for _ in range(3)]
    running: list[int] = []
    most = 0

    async def count(spec: AttemptSpec) -> None:
        nonlocal most
        if spec.agent.agent.id == "notes":
            running.append(spec.index)
            most = max(most, len(running))
            await asyncio.sleep(0.001)
            running.remove(spec.index)

    executor = Scripted(count)
    records = await asyncio.gather(*(run_job(job, executor) for job in jobs))
    assert [record.counts["succeeded"] for record in records] == [11] * 3
    assert most == 1
    history = store.conversations.history(DEFAULT_USER, "notes")
    assert len(history) == 30
    for job in jobs:
        assert [prior.index for prior in history if prior.job_id == job.record.id] == list(range(10))


async def test_a_long_queue_at_one_agent_does_not_delay_requests_to_other_agents(local_store: Store) -> None:
    agents = [noting("notes"), Agent(id="rules", model="offline/rules")]
    requests = [
        *(ask(script({"text": "noted"}), "notes") for _ in range(3000)),
        *(ask("hi", "rules") for _ in range(20)),
    ]
    executor = Scripted(lambda spec: asyncio.Event().wait() if spec.agent.agent.stateful else None)
    job = await started(local_store, new_job(local_store, *requests), *agents, max_in_flight=8)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: job.progress.done == 20, timeout_s=120)
    assert (executor.running["all"], executor.specs[0].index) == (1, 0)
    job.interrupt()
    with pytest.raises(JobInterruptedError):
        await running


# -- all kinds in one batch


@pytest.mark.parametrize("n", [200, pytest.param(1000, marks=pytest.mark.full)])
async def test_requests_of_all_kinds_all_come_out_right(n: int, local_store: Store) -> None:
    """Stateful agents answer in order; items of other agents do not wait for them."""
    store = local_store
    notes = [noting(f"notes-{i}", memory_blocks=({"label": "seen"},)) for i in range(5)]
    agents = [
        *notes,
        guarded(asking("a"), {"text": "done"}),
        Agent(id="rules", model="offline/rules"),
        Agent(id="function", run=echo),
    ]

    def request(i: int) -> dict[str, Any]:
        match i % 4:
            case 0:
                turn = calls(("memory_insert", {"label": "seen", "new_str": str(i)}))
                return ask(script(turn, {"text": f"note {i}"}), f"notes-{i // 4 % 5}")
            case 1:
                return ask(f"may I {i}?")
            case 2:
                return ask(f"word {i}", "rules")
            case _:
                return ask(f"call {i}", "function")

    gate = asyncio.Event()
    executor = Scripted(lambda spec: gate.wait() if spec.agent.agent.stateful else None)
    job = await started(store, new_job(store, *map(request, range(n))), *agents, max_in_flight=64)
    running = asyncio.create_task(run_job(job, executor))
    # All the others are done while the five still hold on to their first request.
    await wait_until(lambda: job.progress.done == n * 3 // 4, timeout_s=120)
    assert (job.progress.counts["succeeded"], job.window.in_flight) == (n * 3 // 4, 5)
    gate.set()
    record = await running
    assert record.counts == {"succeeded": n, "errored": 0, "canceled": 0, "expired": 0}
    results = results_of(store, record)
    assert [said(each) for each in results[2::4]] == [[f"You wrote 2 words: word {i}"] for i in range(2, n, 4)]
    assert [said(each) for each in results[3::4]] == [[f"echo call {i}"] for i in range(3, n, 4)]
    assert [said(each) for each in results[0::4]] == [[f"note {i}"] for i in range(0, n, 4)]
    for k in range(5):
        expected = list(range(4 * k, n, 20))
        assert [prior.index for prior in store.conversations.history(DEFAULT_USER, f"notes-{k}")] == expected
        assert store.conversations.memory(DEFAULT_USER, f"notes-{k}") == {"seen": "\n".join(map(str, expected))}
        started_in = [spec.index for spec in executor.specs if spec.agent.agent.id == f"notes-{k}"]
        assert started_in == expected
    answers = [answer(*waiting(each), approve=i % 2 == 0) for i, each in enumerate(results[1::4])]
    answered = await run(store, agents, *answers)
    assert {each.stop_reason for each in answered} == {"end_turn"}
    assert [each.messages[0].model_dump()["status"] for each in answered] == ["success", "error"] * (n // 8)
