"""The turn of a stateful agent: processes that share a database run its requests one after the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa

from batchray.config import Agent, bind_agents
from batchray.errors import LeaseLostError
from batchray.executors import AttemptSpec
from batchray.jobs.driver import run_job
from batchray.jobs.idle import cancel_idle_job
from batchray.store import DEFAULT_USER, ConversationUpdate, LedJob, NewAttempt, NewOutcome, Store, run_all
from tests.builders.jobs import Scripted, new_job, started
from tests.builders.records import outcome
from tests.polling import until, wait_until
from tests.postgres import Database

FRIEND = bind_agents([Agent(id="friend", model="offline/rules", stateful=True)], environment={})


@pytest.fixture
def one(database: Database, tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "one", database.new_url(), lease_s=60) as opened:
        yield opened


@pytest.fixture
def two(one: Store, tmp_path: Path) -> Iterator[Store]:
    """The same database, as another process opens it."""
    url = one.database.backend.engine.url.render_as_string(hide_password=False)
    with Store.open(tmp_path / "two", url, lease_s=60) as opened:
        yield opened


def led(store: Store, n: int = 1) -> LedJob:
    return store.jobs.start(new_job(store, *["friend"] * n))


def load(store: Store, job: LedJob, index: int = 0) -> int | None:
    """Return how many requests the conversation has, or None if another job has the turn."""
    store.outcomes.write(job, [NewAttempt(index, 1)])
    found = store.conversations.load(job, index, "friend", is_stateful=True)
    return None if found is None else len(found.history)


def said(index: int = 0, status: str = "succeeded") -> NewOutcome:
    update = ConversationUpdate("friend", is_stateful=True)
    return replace(outcome(index, status=status), conversation_update=update)


def expire_leases(store: Store) -> None:
    with store.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE leases SET until = 1")


def expire_next(store: Store) -> None:
    with store.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE agent_turns SET next_until = 1")


async def test_two_processes_continue_one_conversation_without_missing_a_request(one: Store, two: Store) -> None:
    n_seen: list[int] = []

    async def look(spec: AttemptSpec) -> None:
        n_seen.append(len(orjson.loads(spec.context)["history"]))
        await asyncio.sleep(0.002)

    async def run(store: Store) -> None:
        job = await started(store, new_job(store, *["friend"] * 8), FRIEND)
        record = await run_job(job, Scripted(look))
        assert record.counts["succeeded"] == 8

    await asyncio.gather(run(one), run(two))
    assert n_seen == [2 * n for n in range(16)]  # an input and an answer of each request before
    assert len(one.conversations.history(DEFAULT_USER, "friend")) == 16


async def test_a_request_that_waits_for_its_turn_takes_no_room_in_the_window(one: Store, two: Store) -> None:
    agents = bind_agents(
        [Agent(id="friend", model="offline/rules", stateful=True), Agent(id="other", model="offline/rules")],
        environment={},
    )
    holder = led(one)
    assert load(one, holder) == 0
    job = await started(two, new_job(two, "friend", "other", "other", "friend"), agents, max_in_flight=1)
    running = asyncio.create_task(run_job(job, Scripted()))
    await wait_until(lambda: job.progress.done == 2)
    assert not running.done()
    one.outcomes.write(holder, [], [said()])
    assert (await running).counts["succeeded"] == 4
    assert job.window.n_aside == 0


async def test_a_request_whose_client_waits_ends_at_its_deadline_if_another_process_keeps_the_turn(
    one: Store, two: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchray.jobs.driver._WATCH_S", 0.01)
    agents = bind_agents([Agent(id="friend", model="offline/rules", stateful=True, deadline_s=0.2)], environment={})
    assert load(one, led(one)) == 0
    record = await run_job(await started(two, new_job(two, "friend", kind="run"), agents), Scripted())
    [result] = two.items.results(record)
    assert (record.status, result.error) == (
        "failed",
        {"type": "deadline_exceeded", "message": "other requests kept it from its agent until its deadline, 0.2 s"},
    )


def test_a_turn_ends_with_the_outcome_whatever_it_is(one: Store, two: Store) -> None:
    first, second = led(one, 2), led(two, 2)
    assert (load(one, first), load(two, second)) == (0, None)
    one.outcomes.write(first, [], [said(status="errored")])
    assert (load(two, second), load(one, first, 1)) == (0, None)
    two.outcomes.write(second, [], [said()])
    assert load(one, first, 1) == 1


def test_a_job_that_waits_is_the_next_one_until_it_no_longer_asks(one: Store, two: Store) -> None:
    first, second = led(one, 3), led(two, 2)
    assert (load(one, first), load(two, second)) == (0, None)
    one.outcomes.write(first, [], [said()])
    assert load(one, first, 1) is None  # the other job is next
    assert load(two, second) == 1
    two.outcomes.write(second, [], [said()])
    assert load(one, first, 1) == 2
    assert load(two, second, 1) is None
    one.outcomes.write(first, [], [said(1)])
    expire_next(one)
    assert load(one, first, 2) == 3


def test_the_turn_of_a_silent_leader_is_taken_and_its_late_outcome_refused(one: Store, two: Store) -> None:
    first, second = led(one), led(two)
    assert load(one, first) == 0
    expire_leases(one)
    two.leases.renew(second)
    assert load(two, second) == 0
    with pytest.raises(LeaseLostError):
        one.outcomes.write(first, [], [said()])
    with pytest.raises(LeaseLostError):
        one.leases.renew(first)
    two.outcomes.write(second, [], [said()])
    again = two.jobs.start(first.id)  # any server continues the job
    assert load(two, again) == 1


def test_the_next_leader_of_a_job_keeps_its_turn_and_the_last_one_has_none(one: Store, two: Store) -> None:
    first, second = led(one), led(two)
    assert load(one, first) == 0
    expire_leases(one)
    again = two.jobs.start(first.id)
    assert load(two, again) == 0
    two.leases.renew(second)
    assert load(two, second) is None
    with pytest.raises(LeaseLostError):
        load(one, first)


@pytest.mark.parametrize("end", ["cancel", "pause", "delete the agent"])
def test_a_job_that_ends_or_pauses_without_an_outcome_gives_its_turn_up(end: str, one: Store, two: Store) -> None:
    first, second = led(one), led(two)
    assert (load(one, first), load(two, second)) == (0, None)
    if end == "cancel":
        one.leases.release(first)
        run_all(cancel_idle_job(one, first.id))
    elif end == "pause":
        one.jobs.pause(first, "its provider is away")
    else:
        one.conversations.delete(DEFAULT_USER, "friend", with_memory=True)
    assert load(two, second) == 0


def test_a_data_directory_has_no_turns(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        first, second = led(store), led(store)
        assert (load(store, first), load(store, second)) == (0, 0)
        with store.database.reading() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM agent_turns").scalar() == 0


def test_the_outcome_of_one_request_leaves_the_turn_to_another_of_its_job(one: Store, two: Store) -> None:
    ours, theirs = led(one, 2), led(two)
    assert load(one, ours, 0) == 0  # its failure is held back while the next one runs
    assert load(one, ours, 1) == 0
    one.outcomes.write(ours, outcomes=[said(0, "errored")])
    assert load(two, theirs) is None
    one.outcomes.write(ours, outcomes=[said(1)])
    assert load(two, theirs) == 1


def test_an_agent_may_be_deleted_while_its_turn_is_asked_for(one: Store, two: Store) -> None:
    assert load(two, led(two)) == 0
    engine, blocked = (
        one.database.backend.engine,
        sa.text("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"),
    )
    deleting = threading.Thread(
        target=two.conversations.delete, args=(DEFAULT_USER, "friend"), kwargs={"with_memory": True}
    )

    def delete_agent(connection: sa.Connection, cursor: object, statement: str, *_: object) -> None:
        if "agent_turns" in statement and deleting.ident is None:
            deleting.start()
            until(lambda: not deleting.is_alive() or has_blocked())

    def has_blocked() -> bool:
        with two.database.reading() as connection:
            return connection.execute(blocked).first() is not None

    sa.event.listen(engine, "after_cursor_execute", delete_agent)
    assert load(one, led(one)) is None
    deleting.join()
    assert load(one, led(one)) == 0
