"""Memory blocks that agents share: one value, edited by people and by runs, on both databases."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batchray.config import Agent, StoredMemoryBlock, bind_agents, load_settings
from batchray.errors import BlockConflictError, UnknownAgentError, UnknownBlockError
from batchray.executors import LocalExecutor
from batchray.jobs.driver import run_job, start_job
from batchray.schema import new_job_id
from batchray.store import (
    DEFAULT_USER,
    ConversationUpdate,
    MemoryEdit,
    NewAttempt,
    NewBlock,
    NewItem,
    NewJob,
    NewOutcome,
    Store,
    StoredBlock,
)
from batchray.store.tables import agents, blocks
from tests.builders.agents import calls
from tests.polling import until
from tests.postgres import Database

SPEC = {"limit": 60, "description": "Who it is about."}
NAMES = ("ann", "bob")


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = request.getfixturevalue("database").new_url() if request.param == "postgres" else None
    with Store.open(tmp_path / "data", url) as opened:
        for name in NAMES:
            opened.agents.create(name, DEFAULT_USER, {})
        yield opened


def block(store: Store, value: str = "Ada", label: str = "human", *agents: str, **spec: Any) -> StoredBlock:
    """Make a block and give it to agents."""
    made = store.blocks.create(DEFAULT_USER, NewBlock(label, value, {**SPEC, **spec}))
    for agent_id in agents:
        store.blocks.attach(agent_id, DEFAULT_USER, made.id)
    return made


def change(store: Store, block: StoredBlock, **changes: Any) -> StoredBlock:
    """Change a block as a person does."""

    def changed(before: StoredBlock) -> NewBlock:
        spec = {**before.spec, **{name: value for name, value in changes.items() if name in ("limit", "read_only")}}
        return NewBlock(changes.get("label", before.label), changes.get("value", before.value), spec)

    return store.blocks.change(block.id, DEFAULT_USER, changed)


def value(store: Store, block: StoredBlock) -> str:
    return store.blocks.find(block.id, DEFAULT_USER).value


def edit(block: StoredBlock, edited: str, base: str | None = None) -> MemoryEdit:
    return MemoryEdit(block.label, block.value if base is None else base, edited, 60, block.id)


def record(
    store: Store,
    *edits: MemoryEdit,
    status: str = "succeeded",
    user_id: str = DEFAULT_USER,
    agent_id: str = "ann",
    is_stateful: bool = False,
) -> None:
    """Record one request for each edit, all together, as runs that saw the blocks' values of before."""
    job_id = new_job_id()
    items = [NewItem("ann", None, b'{"agent_id": "ann", "input": "x"}') for _ in edits]
    store.jobs.create(NewJob(job_id, lambda ids: {}, user_id=user_id), items)
    outcomes = [
        NewOutcome(
            index=index,
            attempt=1,
            status=status,
            stop_reason="end_turn",
            error=None,
            usage={},
            queued_ns=0,
            ttft_ns=None,
            duration_ns=1,
            messages=b"[]",
            conversation_update=ConversationUpdate(agent_id, is_stateful, edits=[each]),
        )
        for index, each in enumerate(edits)
    ]
    attempts = [NewAttempt(index, 1) for index in range(len(edits))]
    assert store.outcomes.write(store.jobs.start(job_id), attempts, outcomes) == outcomes


def test_a_persons_edit_during_a_run_and_the_runs_edit_are_both_kept(store: Store) -> None:
    shared = block(store, "Ada")
    change(store, shared, value="Ada\nlikes tea")
    record(store, edit(shared, "Ada\nis 36"))
    assert value(store, shared) == "Ada\nlikes tea\nis 36"


def test_edits_of_several_runs_are_merged_also_within_one_commit(store: Store) -> None:
    shared, other = block(store, "", "human"), block(store, "x", "other")
    record(store, edit(shared, "one"), edit(other, "y"), edit(shared, "two"))
    record(store, edit(shared, "three"))
    assert (value(store, shared), value(store, other)) == ("one\ntwo\nthree", "y")


def test_a_job_of_an_older_version_edits_the_block_that_has_its_label(store: Store) -> None:
    shared = block(store, "Ada", "human", "ann")
    change(store, shared, value="Ada\nlikes tea")
    edits = [MemoryEdit(label, "Ada", "Ada\nis 36", 60) for label in ("human", "other")]
    record(store, *edits, is_stateful=True)
    assert value(store, shared) == "Ada\nlikes tea\nis 36"
    assert store.conversations.memory(DEFAULT_USER, "ann") == {"human": value(store, shared), "other": "Ada\nis 36"}


def test_edits_of_a_settings_block_are_merged_within_its_limit(store: Store) -> None:
    store.conversations.edit_memory(DEFAULT_USER, "clerk", "human", "unknown\nlikes tea")
    edit = MemoryEdit("human", "unknown", "unknown\nis 36", 24)
    record(store, edit, agent_id="clerk", is_stateful=True)
    assert store.conversations.memory(DEFAULT_USER, "clerk") == {"human": "unknown\nlikes tea\nis 36"}
    record(store, edit._replace(value="unknown\nis 37"), agent_id="clerk", is_stateful=True)
    record(store, edit, agent_id="clerk")
    assert store.conversations.memory(DEFAULT_USER, "clerk") == {"human": "unknown\nlikes tea\nis 36"}
    assert store.conversations.memory("user-2", "clerk") == {}


@pytest.mark.parametrize("changes", [{"read_only": True}, {"value": "x" * 55, "limit": 58}])
def test_an_edit_that_the_block_no_longer_allows_is_dropped(store: Store, changes: dict[str, Any]) -> None:
    shared = block(store, "Ada")
    before = change(store, shared, **changes).value
    record(store, edit(shared, "Ada\nis 36"))
    assert value(store, shared) == before


def test_edits_of_a_deleted_block_a_failed_run_and_another_user_change_nothing(store: Store) -> None:
    gone, kept = block(store, "Ada"), block(store, "Bo", "kept")
    store.blocks.delete(gone.id, DEFAULT_USER)
    record(store, edit(gone, "back"))
    record(store, edit(kept, "lost"), status="errored")
    record(store, edit(kept, "stolen"), user_id="user-2")
    with pytest.raises(UnknownBlockError, match=gone.id):
        store.blocks.find(gone.id, DEFAULT_USER)
    assert value(store, kept) == "Bo"


def test_an_agent_has_one_block_of_a_label(store: Store) -> None:
    first, second = block(store, "1", "human", "ann", "bob"), block(store, "2", "human")
    store.blocks.attach("ann", DEFAULT_USER, first.id)  # again
    third = block(store, "3", "other", "bob")
    with pytest.raises(BlockConflictError, match="two blocks of the label 'human'"):
        store.blocks.attach("ann", DEFAULT_USER, second.id)
    with pytest.raises(BlockConflictError, match="agent bob cannot have two blocks of the label 'human'"):
        change(store, third, label="human")
    with pytest.raises(BlockConflictError):
        store.agents.create("new", DEFAULT_USER, {}, [NewBlock("human", "", SPEC)], [first.id])
    assert store.agents.find("new", DEFAULT_USER) is None
    assert store.blocks.of_agents(NAMES) == {"ann": [first], "bob": [first, third]}
    assert store.blocks.agents_of(first.id) == ["ann", "bob"]
    renamed = change(store, first, label="person")
    assert store.blocks.of_agent("ann") == [renamed]


def test_an_agent_has_a_limited_number_of_blocks(store: Store) -> None:
    many = [NewBlock(f"block {n}", "", SPEC) for n in range(100)]
    store.agents.create("full", DEFAULT_USER, {}, many)
    with pytest.raises(BlockConflictError, match="cannot have more than 100 blocks"):
        block(store, "", "one more", "full")
    assert [each.label for each in store.blocks.of_agent("full")] == [each.label for each in many]


def test_a_deleted_block_is_detached_from_all_agents(store: Store) -> None:
    shared = block(store, "1", "human", *NAMES)
    assert store.blocks.detach("bob", DEFAULT_USER, shared.id)
    assert not store.blocks.detach("bob", DEFAULT_USER, shared.id)
    store.blocks.delete(shared.id, DEFAULT_USER)
    assert store.blocks.of_agents(NAMES) == {}
    assert store.blocks.agents_of(shared.id) == []


def test_deleting_an_agent_deletes_only_the_blocks_that_no_other_agent_has(store: Store) -> None:
    own = block(store, "own", "own")
    made = [NewBlock("human", "", SPEC), NewBlock("shared", "", SPEC)]
    store.agents.create("cleo", DEFAULT_USER, {}, made, [own.id])
    private, shared, _ = store.blocks.of_agent("cleo")
    store.blocks.attach("ann", DEFAULT_USER, shared.id)
    assert store.agents.delete("cleo", DEFAULT_USER)
    assert [each.block.id for each in store.blocks.listed(DEFAULT_USER, "asc")] == [own.id, shared.id]
    assert store.blocks.position(private.id, DEFAULT_USER) is None


def test_blocks_and_agents_of_other_users_are_unknown(store: Store) -> None:
    mine = block(store, "1", "human", "ann")
    with pytest.raises(UnknownBlockError):
        store.blocks.find(mine.id, "user-2")
    with pytest.raises(UnknownBlockError):
        store.blocks.delete(mine.id, "user-2")
    with pytest.raises(UnknownAgentError):
        store.blocks.detach("ann", "user-2", mine.id)
    store.agents.create("theirs", "user-2", {})
    with pytest.raises(UnknownBlockError):
        store.blocks.attach("theirs", "user-2", mine.id)
    assert list(store.blocks.listed("user-2", "asc")) == []
    assert store.blocks.position(mine.id, "user-2") is None


def test_blocks_are_listed_in_both_orders_between_two_of_them(store: Store) -> None:
    made = [block(store, str(n), f"block {n}", *NAMES[: n % 3]) for n in range(5)]
    places = [store.blocks.position(each.id, DEFAULT_USER) for each in made]
    listed = list(store.blocks.listed(DEFAULT_USER, "asc"))
    assert [(each.block, each.n_agents) for each in listed] == [(each, n % 3) for n, each in enumerate(made)]
    newest = [each.block for each in store.blocks.listed(DEFAULT_USER, "desc", after=places[3], before=places[0])]
    assert newest == made[2:0:-1]


@pytest.mark.parametrize("does", ["rename", "delete"])
def test_a_block_and_its_agents_are_locked_in_one_order(tmp_path: Path, database: Database, does: str) -> None:
    url = database.new_url()
    with Store.open(tmp_path / "data", url) as store, ThreadPoolExecutor() as pool:
        store.agents.create("ann", DEFAULT_USER, {})
        shared = block(store, "Ada", "human", "ann")
        with store.database.transaction() as attaching:  # it locks the agent, and then the block
            attaching.execute(sa.select(agents.c.id).with_for_update())
            if does == "rename":
                other = pool.submit(change, store, shared, label="person")
            else:
                other = pool.submit(store.blocks.delete, shared.id, DEFAULT_USER)  # type: ignore[arg-type]
            until(lambda: attaching.execute(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar())
            attaching.execute(sa.select(blocks.c.id).with_for_update(nowait=True))
        other.result()


async def test_a_run_reads_and_writes_the_stored_blocks_and_a_person_edits_them_meanwhile(store: Store) -> None:
    human = block(store, "Ada", "human")
    pets = block(store, "cat", "pets")
    gone = block(store, "", "gone")

    async def person() -> str:
        """Edit the blocks as a person does, while the run that calls this has edited them already."""
        await store.database.call(change, store, human, value="Ada Lovelace")
        await store.database.call(change, store, pets, value="cat\nfish")
        return "edited"

    blocks = [StoredMemoryBlock(id=each.id, label=each.label, limit=60) for each in (human, pets, gone)]
    agent = Agent(id="ann", model="offline/scripted", tools=(person,), memory_blocks=tuple(blocks))
    store.blocks.delete(gone.id, DEFAULT_USER)
    turns = [
        calls(
            ("memory_replace", {"label": "human", "old_str": "Ada", "new_str": "Ada, 36"}),
            ("memory_insert", {"label": "gone", "new_str": "x"}),
        ),
        calls(("person", {})),
        {"text": "done"},
    ]
    job_id = new_job_id()
    request = json.dumps({"agent_id": "ann", "input": json.dumps({"script": turns})}).encode()
    store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("ann", None, request)])
    job = await start_job(job_id, bind_agents([agent], environment={}), store, load_settings(executor="local"), None)
    await run_job(job, LocalExecutor())
    [result] = store.items.results(store.jobs.get(job_id))
    assert (result.status, result.stop_reason) == ("succeeded", "end_turn")
    assert b"there is no block 'gone'; there are: human, pets" in result.messages
    assert value(store, human) == "Ada Lovelace\nAda, 36"
    assert value(store, pets) == "cat\nfish"
