"""Letta's Python SDK against a live server: each call, with loose and with strict validation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import letta_client
import pytest
from letta_client import AsyncLetta, Letta
from letta_client.types import AgentState, BatchJob
from letta_client.types.agents import InternalMessage

from batchray import __version__
from batchray.store import DEFAULT_USER
from tests.server.live import LiveServer, live_server
from tests.server.receiver import receiver

RUNNING = ("created", "running")


@pytest.fixture(params=(False, True), ids=("loose", "strict"))
def letta(request: pytest.FixtureRequest, server: LiveServer) -> Iterator[Letta]:
    with Letta(base_url=server.url, api_key="any", _strict_response_validation=request.param) as client:
        yield client


@pytest.fixture
def agent(letta: Letta) -> Iterator[AgentState]:
    """Return an agent that calculates, many requests at once: it remembers none."""
    created = letta.agents.create(
        name="sums", model="offline/rules", tools=["calculate"], message_buffer_autoclear=True
    )
    yield created
    letta.agents.delete(created.id)


@pytest.fixture
def actor(letta: Letta) -> Iterator[AgentState]:
    """Return an agent that follows the script in its message, and remembers none."""
    created = letta.agents.create(name="actor", model="offline/scripted", message_buffer_autoclear=True)
    yield created
    letta.agents.delete(created.id)


def script(*turns: dict[str, Any]) -> str:
    return json.dumps({"script": turns})


def batch_of(letta: Letta, agent: AgentState, n: int, first: int = 0) -> BatchJob:
    """Create a batch of sums, and wait for its end."""
    asked = [f"What is {first + i} + 1000?" for i in range(n)]
    job = letta.batches.create(
        requests=[{"agent_id": agent.id, "messages": [{"role": "user", "content": text}]} for text in asked]
    )
    return ended(letta, job)


def ended(letta: Letta, job: BatchJob, timeout_s: float = 60.0) -> BatchJob:
    end = time.monotonic() + timeout_s
    while job.status in RUNNING:
        assert time.monotonic() < end, job
        time.sleep(0.05)
        job = letta.batches.retrieve(job.id)
    return job


def texts(message: InternalMessage) -> list[str]:
    return [part.text for part in message.content or () if part.type == "text"]


# -- around a batch


def test_health_and_models_are_read(letta: Letta) -> None:
    assert letta.health().model_dump() == {"version": __version__, "status": "ok"}
    models = {model.handle: model for model in letta.models.list()}
    assert {"offline/rules", "offline/scripted"} <= models.keys()
    assert models["offline/rules"].context_window > 0
    of_provider = letta.models.list(provider_name="offline", provider_type="openai", provider_category=["base", "byok"])
    assert {model.handle for model in of_provider} == {handle for handle in models if "offline/" in str(handle)}
    for others in ({"provider_name": "none"}, {"provider_type": "azure"}, {"provider_category": ["byok"]}):
        assert letta.models.list(**others) == []


def test_an_agent_is_created_retrieved_updated_and_deleted(letta: Letta) -> None:
    agent = letta.agents.create(
        name="Anna's clerk",
        description="Counts and calculates.",
        model="offline/rules",
        embedding="openai/text-embedding-3-small",
        system="Be brief.",
        tools=["calculate", "count_words"],
        memory_blocks=[{"label": "human", "value": "Anna."}, {"label": "persona", "value": "A clerk.", "limit": 5000}],
        tags=["clerks", "anna"],
        metadata={"team": 7},
        model_settings={"provider_type": "openai", "temperature": 0.5},
        include_base_tools=False,
    )
    assert (agent.name, agent.system, agent.description) == ("Anna's clerk", "Be brief.", "Counts and calculates.")
    assert (agent.model, agent.llm_config.handle, agent.llm_config.temperature) == (
        "offline/rules",
        "offline/rules",
        0.5,
    )
    assert [tool.name for tool in agent.tools] == ["calculate", "count_words"]
    assert [(block.label, block.value) for block in agent.blocks] == [("human", "Anna."), ("persona", "A clerk.")]
    assert (agent.tags, agent.metadata, agent.secrets) == (["clerks", "anna"], {"team": 7}, [])
    assert letta.agents.retrieve(agent.id, include=["agent.blocks", "agent.tools", "agent.tags"]) == agent

    changed = letta.agents.update(agent.id, name="other", tags=["new"], tool_ids=[str(agent.tools[1].id)])
    assert (changed.name, changed.tags, changed.system) == ("other", ["new"], "Be brief.")
    assert [tool.name for tool in changed.tools] == ["count_words"]
    assert letta.agents.retrieve(agent.id) == changed

    letta.agents.delete(agent.id)
    with pytest.raises(letta_client.NotFoundError, match=agent.id):
        letta.agents.retrieve(agent.id)


def test_agents_are_listed_page_by_page_and_found_by_name_and_tags(letta: Letta) -> None:
    made = [
        letta.agents.create(name=f"listed {tag}", model="offline/rules", tags=["listed", tag])
        for tag in ("a", "b", "c")
    ]
    ids = [agent.id for agent in made]
    try:
        assert [agent.id for agent in islice(letta.agents.list(limit=2), 3)] == ids[::-1]
        assert [agent.id for agent in letta.agents.list(limit=2, order="asc", after=ids[0])] == ids[1:]
        assert [agent.id for agent in letta.agents.list(order="asc", tags=["listed"])] == ids
        assert [agent.id for agent in letta.agents.list(order="asc", tags=["a", "c"])] == [ids[0], ids[2]]
        assert [agent.id for agent in letta.agents.list(tags=["listed", "b"], match_all_tags=True)] == [ids[1]]
        assert [agent.id for agent in letta.agents.list(name="listed c")] == [ids[2]]
        assert [agent.id for agent in letta.agents.list(query_text="LISTED", order="asc", limit=1)] == ids
        assert "calculator" in [agent.id for agent in letta.agents.list(limit=3)]  # of the operator's file
    finally:
        for agent_id in ids:
            letta.agents.delete(agent_id)


def test_memory_blocks_reach_the_model(letta: Letta) -> None:
    plain = letta.agents.create(model="offline/rules", system="Be brief.")
    knowing = letta.agents.create(
        model="offline/rules", system="Be brief.", memory_blocks=[{"label": "human", "value": "x" * 400}]
    )
    tokens = [letta.agents.messages.create(each.id, input="Hello").usage.prompt_tokens for each in (plain, knowing)]
    assert tokens[0] is not None
    assert tokens[1] is not None
    assert tokens[1] - tokens[0] >= 100  # an offline token is four characters


# -- a batch


def test_a_batch_ends_and_every_field_of_its_job_is_correct(letta: Letta, agent: AgentState) -> None:
    before = datetime.now(UTC)
    job = batch_of(letta, agent, 5)
    assert job.created_at is not None
    assert job.completed_at is not None
    assert before <= job.created_at < job.completed_at <= datetime.now(UTC)
    assert job.ttft_ns is not None
    assert job.total_duration_ns is not None
    assert 0 < job.ttft_ns <= job.total_duration_ns
    assert timedelta(microseconds=job.total_duration_ns / 1000) <= job.completed_at - job.created_at
    fields = ("id", "created_at", "completed_at", "ttft_ns", "total_duration_ns")
    assert job.model_dump() == {
        **{name: getattr(job, name) for name in fields},
        "agent_id": None,
        "background": False,
        "callback_error": None,
        "callback_sent_at": None,
        "callback_status_code": None,
        "callback_url": None,
        "created_by_id": DEFAULT_USER,
        "job_type": "batch",
        "last_updated_by_id": DEFAULT_USER,
        "metadata": {
            "job_type": "batch_messages",
            "request_counts": {
                "total": 5,
                "succeeded": 5,
                "errored": 0,
                "canceled": 0,
                "expired": 0,
                "pending": 0,
            },
        },
        "status": "completed",
        "stop_reason": "end_turn",
        "updated_at": job.completed_at,
    }
    assert len(job.model_fields_set) == 18


def test_a_new_batch_has_no_outcomes_yet(letta: Letta, actor: AgentState) -> None:
    job = letta.batches.create(requests=[{"agent_id": actor.id, "input": script({"text": "late", "delay_s": 300})}])
    assert job.status in RUNNING
    assert (job.completed_at, job.stop_reason, job.ttft_ns, job.total_duration_ns) == (None, None, None, None)
    assert job.metadata is not None
    assert job.metadata["request_counts"]["pending"] == 1  # type: ignore[index]
    letta.batches.cancel(job.id)


@pytest.mark.parametrize("is_strict", [False, True], ids=("loose", "strict"))
def test_a_batch_calls_back(calling_server: LiveServer, is_strict: bool) -> None:
    with (
        receiver((202,)) as hook,
        Letta(base_url=calling_server.url, _strict_response_validation=is_strict) as letta,
    ):
        job = letta.batches.create(
            requests=[{"agent_id": "calculator", "input": "What is 6 * 7?"}], callback_url=hook.url
        )
        end = time.monotonic() + 60
        while job.callback_sent_at is None:
            assert time.monotonic() < end, job
            time.sleep(0.05)
            job = letta.batches.retrieve(job.id)
    assert (job.status, job.callback_url, job.callback_status_code, job.callback_error) == (
        "completed",
        hook.url,
        202,
        None,
    )
    assert job.completed_at is not None
    assert job.callback_sent_at >= job.completed_at
    [received] = hook.received
    payload = json.loads(received.body)
    assert (payload["job_id"], payload["status"], payload["metadata"]) == (job.id, "completed", job.metadata)
    assert datetime.fromisoformat(payload["completed_at"]) == job.completed_at


@pytest.fixture(scope="module")
def calling_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Return a server that may send callbacks to this machine."""
    data_dir = tmp_path_factory.mktemp("calling") / "data"
    with live_server(data_dir, BATCHRAY_CALLBACK_NETWORKS='["127.0.0.0/8"]') as running:
        yield running


def test_batches_are_listed_page_by_page_in_both_orders(letta: Letta, agent: AgentState) -> None:
    ids = [batch_of(letta, agent, 1).id for _ in range(5)]
    newest_first = [job.id for job in islice(letta.batches.list(limit=2), 5)]
    assert newest_first == ids[::-1]
    assert [job.id for job in letta.batches.list(limit=2, order="asc", after=ids[0])] == ids[1:]
    assert [job.id for job in letta.batches.list(order="asc", after=ids[0], before=ids[3])] == ids[1:3]
    # With `before` the SDK walks towards the beginning, a page at a time, each page in the order of the list.
    walked = [job.id for job in letta.batches.list(limit=2, before=ids[0])]
    assert walked == [ids[2], ids[1], ids[4], ids[3]]
    everything = list(letta.batches.list(limit=50))  # the iteration ends
    assert {*ids} <= {job.id for job in everything}
    assert [job.created_at for job in everything] == sorted(
        (job.created_at for job in everything if job.created_at), reverse=True
    )


def test_messages_are_listed_page_by_page_in_both_orders(letta: Letta, agent: AgentState) -> None:
    job = batch_of(letta, agent, 4)
    oldest_first = list(letta.batches.messages.list(job.id, limit=3, order="asc"))
    assert [message.role for message in oldest_first] == ["user", "assistant", "tool", "assistant"] * 4
    ids = [message.id for message in oldest_first]
    assert len({*ids}) == 16
    newest_first = [message.id for message in letta.batches.messages.list(job.id, limit=3)]
    assert newest_first == ids[::-1]
    assert [message.id for message in letta.batches.messages.list(job.id)] == ids[::-1]
    after = letta.batches.messages.list(job.id, limit=2, order="asc", after=ids[9])
    assert [message.id for message in after] == ids[10:]
    before = letta.batches.messages.list(job.id, limit=3, order="asc", before=ids[5])
    assert [message.id for message in before] == ids[2:5] + ids[:2]
    one_page = letta.batches.messages.list(job.id, limit=3, order="desc", before=ids[5])
    assert [message.id for message in one_page.messages] == ids[6:9][::-1]
    assert {message.agent_id for message in oldest_first} == {agent.id}


def test_messages_of_one_agent_name_their_items(letta: Letta, agent: AgentState) -> None:
    job = batch_of(letta, agent, 12)
    said: dict[str, list[InternalMessage]] = {}
    for message in letta.batches.messages.list(job.id, order="asc", limit=7):
        said.setdefault(str(message.batch_item_id), []).append(message)
    assert len(said) == 12
    answers = set()
    for asked, calls, returns, answer in said.values():
        [question], [text] = texts(asked), texts(answer)
        number = question.split()[2]
        assert text == f"{number} + 1000 = {1000 + int(number)}"
        answers.add(text)
        assert calls.tool_calls is not None
        assert returns.tool_returns is not None
        assert returns.tool_call_id == calls.tool_calls[0].id == returns.tool_returns[0].tool_call_id
        assert returns.tool_returns[0].status == "success"
        assert len({each.run_id for each in (asked, calls, returns, answer)}) == 1
        assert calls.step_id == returns.step_id != answer.step_id
        assert calls.step_id is not None
        assert answer.step_id is not None
    assert len(answers) == 12


def test_messages_of_one_agent_are_those_of_its_items_only(letta: Letta, agent: AgentState, actor: AgentState) -> None:
    asked = [
        {"agent_id": (agent if i % 2 else actor).id, "input": script({"text": f"line {i}"}) if i % 2 == 0 else f"{i}+1"}
        for i in range(8)
    ]
    job = ended(letta, letta.batches.create(requests=asked))  # type: ignore[arg-type]
    of_actor = list(letta.batches.messages.list(job.id, agent_id=actor.id, limit=3, order="asc"))
    assert {message.agent_id for message in of_actor} == {actor.id}
    spoken = [text for message in of_actor if message.role == "assistant" for text in texts(message)]
    assert sorted(spoken) == ["line 0", "line 2", "line 4", "line 6"]
    both = list(letta.batches.messages.list(job.id, limit=3))
    assert len(both) == len(of_actor) + len(list(letta.batches.messages.list(job.id, agent_id=agent.id, limit=5)))
    assert list(letta.batches.messages.list(job.id, agent_id="agent-unknown")) == []


def test_every_field_of_an_input_message_is_returned(letta: Letta, agent: AgentState) -> None:
    otid = "5b7e3c1e-7c5c-4a5f-8a53-9e7a5b0d8f11"
    job = letta.batches.create(
        requests=[
            {
                "agent_id": agent.id,
                "messages": [
                    {"role": "system", "content": "Answer in one line."},
                    {
                        "type": "message",
                        "role": "user",
                        "content": [{"type": "text", "text": "What is "}, {"text": "2 + 3?"}],
                        "name": "Anna",
                        "otid": otid,
                        "sender_id": "identity-1",
                        "group_id": "group-1",
                        "batch_item_id": "set by the server",
                    },
                ],
            }
        ]
    )
    ended(letta, job)
    system, user, *_ = letta.batches.messages.list(job.id, order="asc")
    assert (system.role, texts(system)) == ("system", ["Answer in one line."])
    assert (user.role, texts(user)) == ("user", ["What is ", "2 + 3?"])
    assert (user.name, user.otid, user.sender_id, user.group_id) == ("Anna", otid, "identity-1", "group-1")
    assert user.batch_item_id == system.batch_item_id != "set by the server"


def test_only_messages_of_the_requested_types_are_returned(letta: Letta, agent: AgentState) -> None:
    job = letta.batches.create(
        requests=[
            {
                "agent_id": agent.id,
                "input": "What is 2 + 3?",
                "include_return_message_types": ["assistant_message"],
                "max_steps": 2,
            }
        ]
    )
    ended(letta, job)
    assert [texts(message) for message in letta.batches.messages.list(job.id, limit=1)] == [["2 + 3 = 5"]]


def test_a_batch_with_some_failures_is_completed_and_counts_them(letta: Letta) -> None:
    job = letta.batches.create(
        requests=[{"agent_id": name, "input": "What is 6 * 7?"} for name in ("calculator", "refused", "garbled")]
    )
    job = ended(letta, job)
    assert (job.status, job.stop_reason) == ("completed", "end_turn")
    assert job.metadata is not None
    counts = job.metadata["request_counts"]
    assert counts == {"total": 3, "succeeded": 1, "errored": 2, "canceled": 0, "expired": 0, "pending": 0}


def test_a_batch_with_only_failures_is_failed(letta: Letta) -> None:
    job = ended(letta, letta.batches.create(requests=[{"agent_id": "refused", "input": "x"}] * 3))
    assert (job.status, job.stop_reason) == ("failed", "error")
    assert job.total_duration_ns is not None


def test_a_canceled_batch_keeps_its_results(letta: Letta, actor: AgentState) -> None:
    slow = {"agent_id": actor.id, "input": script({"text": "late", "delay_s": 300})}
    job = letta.batches.create(
        requests=[{"agent_id": actor.id, "input": script({"text": "early"})}, slow, slow]  # type: ignore[list-item]
    )
    end = time.monotonic() + 60
    while not (kept := list(letta.batches.messages.list(job.id))):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert letta.batches.cancel(job.id) is None
    job = ended(letta, job)
    assert (job.status, job.stop_reason) == ("cancelled", "cancelled")
    assert job.completed_at is not None
    assert job.metadata is not None
    counts = job.metadata["request_counts"]
    assert counts == {"total": 3, "succeeded": 1, "errored": 0, "canceled": 2, "expired": 0, "pending": 0}
    left = [message.id for message in letta.batches.messages.list(job.id, order="asc")]
    assert [message.id for message in kept][::-1] == left[: len(kept)]
    assert ["early"] in [texts(message) for message in kept]


def test_canceling_an_ended_batch_changes_nothing(letta: Letta, agent: AgentState) -> None:
    job = batch_of(letta, agent, 2)
    assert letta.batches.cancel(job.id) is None
    assert letta.batches.retrieve(job.id) == job


# -- one agent at once


def test_a_message_to_an_agent_gets_a_response(letta: Letta, agent: AgentState) -> None:
    answer = letta.agents.messages.create(agent.id, messages=[{"role": "user", "content": "What is 4 * 5?"}])
    assert [message.message_type for message in answer.messages] == [
        "tool_call_message",
        "tool_return_message",
        "assistant_message",
    ]
    assert answer.messages[-1].content == "4 * 5 = 20"  # type: ignore[union-attr]
    assert answer.stop_reason.stop_reason == "end_turn"
    assert answer.usage.step_count == 2
    assert answer.usage.total_tokens == (answer.usage.prompt_tokens or 0) + (answer.usage.completion_tokens or 0)


def test_a_message_to_an_agent_gets_a_streamed_response(letta: Letta, agent: AgentState) -> None:
    asked: list[Any] = [{"role": "user", "content": "What is 4 * 5?"}]
    kinds = [
        "tool_call_message",
        "tool_return_message",
        "assistant_message",
        "stop_reason",
        "usage_statistics",
    ]
    streamed = letta.agents.messages.create(agent.id, messages=asked, streaming=True)
    assert [event.message_type for event in streamed if event.message_type != "ping"] == kinds
    with pytest.warns(DeprecationWarning, match="deprecated"):
        old = letta.agents.messages.stream(agent.id, messages=asked, include_pings=False)
    assert [event.message_type for event in old] == kinds


def test_the_messages_of_an_agent_are_listed_page_by_page_in_both_orders(letta: Letta, agent: AgentState) -> None:
    for number in (1, 2, 3):
        letta.agents.messages.create(agent.id, input=f"What is {number} + 1?")
    kinds = ["user_message", "tool_call_message", "tool_return_message", "assistant_message"]
    oldest_first = list(letta.agents.messages.list(agent.id, limit=5, order="asc"))
    assert [message.message_type for message in oldest_first] == kinds * 3
    newest_first = list(letta.agents.messages.list(agent.id, limit=3))
    assert [message.id for message in newest_first] == [message.id for message in oldest_first][::-1]


def test_the_sdk_does_not_retry_after_a_model_failure(letta: Letta) -> None:
    with pytest.raises(letta_client.InternalServerError, match="the provider refused this call") as raised:
        letta.agents.messages.create("refused", input="x")
    assert raised.value.response.request.headers["x-stainless-retry-count"] == "0"
    streamed = letta.agents.messages.create("refused", messages=[{"role": "user", "content": "x"}], streaming=True)
    with pytest.raises(letta_client.APIStatusError, match="the provider refused this call"):
        list(streamed)


# -- what is refused


def test_refusals_are_raised_as_the_sdks_exceptions(letta: Letta, agent: AgentState) -> None:
    with pytest.raises(letta_client.BadRequestError, match="Empty list of batch_requests"):
        letta.batches.create(requests=[])
    with pytest.raises(letta_client.NotFoundError, match=r"requests\[1\].*agent-unknown"):
        letta.batches.create(
            requests=[{"agent_id": agent.id, "input": "x"}, {"agent_id": "agent-unknown", "input": "x"}]
        )
    with pytest.raises(letta_client.UnprocessableEntityError, match="Must specify either"):
        letta.batches.create(requests=[{"agent_id": agent.id}])
    with pytest.raises(letta_client.BadRequestError, match="Invalid job ID format"):
        letta.batches.retrieve("batch-1")
    with pytest.raises(letta_client.NotFoundError):
        letta.batches.cancel("job-1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00")
    with pytest.raises(letta_client.BadRequestError, match="not found"):
        list(letta.batches.list(after="job-1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00"))
    with pytest.raises(letta_client.PermissionDeniedError, match="configured by the operator"):
        letta.agents.delete("calculator")
    with pytest.raises(letta_client.NotFoundError, match="Tool no_such_tool not found"):
        letta.agents.create(model="offline/rules", tools=["no_such_tool"])
    with pytest.raises(letta_client.NotFoundError, match="Handle unknown/model not found"):
        letta.agents.create(model="unknown/model")


# -- the same in async code


@pytest.mark.parametrize("is_strict", [False, True], ids=("loose", "strict"))
async def test_the_async_client_does_the_same(server: LiveServer, is_strict: bool) -> None:
    async with AsyncLetta(base_url=server.url, _strict_response_validation=is_strict) as letta:
        agent = await letta.agents.create(name="sums", model="offline/rules", tools=["calculate"])
        job = await letta.batches.create(requests=[{"agent_id": agent.id, "input": "What is 2 + 3?"}] * 3)
        end = time.monotonic() + 60
        while job.status in RUNNING:
            assert time.monotonic() < end
            job = await letta.batches.retrieve(job.id)
        assert (job.status, job.stop_reason) == ("completed", "end_turn")
        messages = [message async for message in letta.batches.messages.list(job.id, limit=5, order="asc")]
        assert [message.role for message in messages] == ["user", "assistant", "tool", "assistant"] * 3
        listed = [each.id async for each in letta.batches.list(limit=1, before=job.id)]
        assert listed == []
        assert await letta.batches.cancel(job.id) is None
        answer = await letta.agents.messages.create(agent.id, input="What is 2 + 3?")
        assert answer.stop_reason.stop_reason == "end_turn"
        await letta.agents.delete(agent.id)


def test_a_batch_continues_after_its_agent_is_deleted(server: LiveServer) -> None:
    with Letta(base_url=server.url) as letta:
        agent = letta.agents.create(name="gone", model="offline/scripted")
        job = letta.batches.create(
            requests=[{"agent_id": agent.id, "input": script({"text": f"line {i}", "delay_s": 0.2})} for i in range(3)]
        )
        letta.agents.delete(agent.id)
        job = ended(letta, job)
        assert job.status == "completed"
        assert len(list(letta.batches.messages.list(job.id))) == 6
