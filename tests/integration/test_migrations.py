"""Databases that older versions wrote: opened, migrated, read, and their jobs resumed.

`tests/data/databases/make.py` made them, with the answers of the version that wrote them.  Version 1 of the schema is
that of commit cbd6ca0, version 2 that of commit 0ab2a6b.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

import batchray
from batchray import Agent
from batchray.cli.main import cli
from batchray.errors import StoreError
from batchray.jobs.context import messages_of
from batchray.schema.progress import Progress
from batchray.store import DEFAULT_USER, Store, run_all
from batchray.store.directory import lock
from batchray.store.tables import SCHEMA_VERSION, metadata

DATABASES = Path(__file__).parents[1] / "data" / "databases"
RENAMED = {"deaths": "blamed_crashes", "losses": "collateral_crashes"}
# Fields that differ from run to run of the same job.
VARIES = ("queued_ns", "ttft_ns", "duration_ns", "messages")


class OldDatabase(NamedTuple):
    """A database that an older version wrote, and the answers of that version."""

    version: int
    data_dir: Path
    url: str | None
    answers: dict[str, Any]

    def open(self) -> Store:
        return Store.open(self.data_dir, self.url)

    def job_id(self, name: str) -> str:
        return str(self.answers["ids"][name])

    @property
    def options(self) -> dict[str, Any]:
        # The jobs are as old as this test.
        return {"executor": "local", "data_dir": self.data_dir, "database_url": self.url, "job_deadline_s": 1e9}


def answers_of(name: str) -> dict[str, Any]:
    return dict(json.loads((DATABASES / f"{name}.json").read_text()))


def old_sqlite(name: str, data_dir: Path) -> OldDatabase:
    with closing(sqlite3.connect(data_dir / "batchray.db")) as connection:
        connection.executescript((DATABASES / f"{name}.sql").read_text())
    return OldDatabase(int(name[-1]), data_dir, None, answers_of(name))


def old_postgres(name: str, data_dir: Path, url: str) -> OldDatabase:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql((DATABASES / f"{name}.sql").read_text())
    engine.dispose()
    return OldDatabase(int(name[-1]), data_dir, url, answers_of(name))


@pytest.fixture(params=["sqlite_1", "sqlite_2", "postgres_1", "postgres_2"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> OldDatabase:
    if request.param.startswith("sqlite"):
        return old_sqlite(request.param, tmp_path)
    return old_postgres(request.param, tmp_path, request.getfixturevalue("database").new_url())


def note(text: str) -> str:
    """A tool that the interrupted run had called already."""
    raise AssertionError("called again, although its step was kept")


def hold() -> str:
    """The tool that the interrupted run was in."""
    return "held"


def drop(key: str) -> str:
    """Drop a key."""
    return f"{key} is gone"


def agents() -> list[Agent]:
    return [
        Agent(id="plain", model="offline/scripted"),
        Agent(id="stepper", model="offline/scripted", tools=(note, hold)),
        Agent(id="guarded", model="offline/scripted", tools=(drop,), requires_approval=("drop",)),
        Agent.model_validate(
            {
                "id": "friend",
                "model": "offline/scripted",
                "stateful": True,
                "memory_blocks": [{"label": "human", "value": "unknown"}],
            }
        ),
    ]


def plain(value: Any) -> Any:
    """Return JSON data, as the script that made the databases does."""
    if isinstance(value, Progress):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def renamed(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return unfinished items with the present names of their fields; version 1 counted no collateral crashes."""
    return [
        {"collateral_crashes": 0, **{RENAMED.get(key, key): value for key, value in each.items()}} for each in items
    ]


def steady(results: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[Any]]]:
    """Return results without what differs from run to run."""
    return [
        ({key: value for key, value in each.items() if key not in VARIES}, steady_messages(each)) for each in results
    ]


def steady_messages(result: Mapping[str, Any]) -> list[Any]:
    varies = ("created_at", "step_id")
    messages = json.loads(base64.b64decode(result["messages"]))
    return [{key: value for key, value in each.items() if key not in varies} for each in messages]


def test_a_reader_migrates_a_data_directory_that_no_process_writes_to(old: OldDatabase) -> None:
    refusal = "was written by an older version of batchray; resume a job or start a server"
    if old.url is not None:  # other processes may write to it
        with pytest.raises(StoreError, match=refusal):
            Store.open_for_reading(old.data_dir, old.url)
        return
    writer = lock(old.data_dir)
    with pytest.raises(StoreError, match=refusal):
        Store.open_for_reading(old.data_dir)
    os.close(writer)
    with Store.open_for_reading(old.data_dir) as store:
        assert store.jobs.get(next(iter(old.answers["ids"].values()))).total


def test_a_migrated_database_has_the_tables_of_a_new_one(old: OldDatabase) -> None:
    with old.open() as store, store.database.reading() as connection:
        assert store.database.backend.version(connection) == SCHEMA_VERSION
        inspected = sa.inspect(connection)
        assert {*inspected.get_table_names()} - {"schema_version"} == {*metadata.tables}
        for table in metadata.sorted_tables:
            assert {each["name"] for each in inspected.get_columns(table.name)} == {each.name for each in table.c}
            indexes = {each["name"] for each in inspected.get_indexes(table.name)}
            assert {each.name for each in table.indexes} <= indexes, table.name
    with old.open() as store:
        assert store.integrity.check().problems == []


def test_everything_reads_back_as_the_older_version_read_it(old: OldDatabase) -> None:
    answers = old.answers
    with old.open() as store:
        for name, job_id in answers["ids"].items():
            job = store.jobs.get(job_id)
            before = {**answers["jobs"][name], "paused_because": None, "unused_fields": None}
            if before["progress"] is not None:  # it did not count these tokens
                before["progress"] = {**before["progress"], "cached_input_tokens": 0, "reasoning_tokens": 0}
            assert plain(job) == before
            assert plain(store.items.results(job)) == answers["results"][name]
            assert plain(store.items.unfinished(job, after=-1)) == renamed(answers["unfinished"][name])
            assert plain(store.items.checkpoints(job, 1)) == answers["steps"][name]
        assert plain(store.conversations.history(DEFAULT_USER, "friend")) == answers["conversation"]
        assert store.conversations.memory(DEFAULT_USER, "friend") == answers["memory"] == {"human": "called Ada"}
        due = store.callbacks.due(time.time() + 60, 10)
        assert [[each.job.id, each.n_attempts] for each in due] == answers["due"] != []
        assert (
            plain(run_all(store.tallies.tally(store.jobs.get(old.job_id("finished")))).failure_kinds())
            == answers["failures"]
            != []
        )


def test_control_requests_reach_the_next_leader_as_before(old: OldDatabase) -> None:
    with old.open() as store:
        assert store.leases.requested(store.jobs.start(old.job_id("cancelling"))) == {"is_canceled": True}
        assert store.leases.requested(store.jobs.start(old.job_id("unfinished"))) == {}


def resumed(old: OldDatabase, name: str) -> tuple[str, list[dict[str, Any]]]:
    """Resume a job, and return its status and its results."""
    job = batchray.resume(old.job_id(name), agents(), progress=False, max_in_flight=1, **old.options)
    with old.open() as store:
        return job.status, plain(store.items.results(store.jobs.get(job.id)))


def test_an_unfinished_job_ends_as_the_older_version_would_have_ended_it(old: OldDatabase) -> None:
    assert len(old.answers["steps"]["unfinished"]) == 3
    status, results = resumed(old, "unfinished")
    assert status == "completed"
    assert steady(results) == steady(old.answers["resumed"]["unfinished"])


def test_a_job_that_was_to_be_canceled_is_canceled(old: OldDatabase) -> None:
    status, results = resumed(old, "cancelling")
    assert status == "cancelled"
    assert [each["status"] for each in results] == ["succeeded", *["canceled"] * 4]
    if old.version > 1:  # which did not read the request of an earlier leader
        assert steady(results) == steady(old.answers["resumed"]["cancelling"])


def test_pending_approvals_are_answered(old: OldDatabase) -> None:
    [first, _] = [each for each in old.answers["results"]["finished"] if each["stop_reason"] == "requires_approval"]
    call_ids = [call["id"] for message in steady_messages(first) for call in message.get("tool_calls", ())]
    approvals = [{"type": "approval", "tool_call_id": each, "approve": True} for each in call_ids]
    request = {"agent_id": "guarded", "messages": [{"type": "approval", "approvals": approvals}]}
    job = batchray.run([request], agents(), progress=False, **old.options)
    [result] = job.results()
    assert (result.stop_reason, result.text) == ("end_turn", "dropped")


def test_a_conversation_continues(old: OldDatabase) -> None:
    request = {"agent_id": "friend", "input": json.dumps({"script": [{"text": "still here"}]})}
    job = batchray.run([request], agents(), progress=False, **old.options)
    with old.open() as store:
        history = store.conversations.history(DEFAULT_USER, "friend")
        places = store.conversations.places(DEFAULT_USER, "friend")
    assert [each for place in places for each in place.message_ids] == [
        message.id for prior in history for message in messages_of(prior)
    ]
    assert [each.job_id for each in history[:-1]] == [each["job_id"] for each in old.answers["conversation"]]
    assert history[-1].job_id == job.id


def test_a_database_from_before_leases_and_conversations_is_migrated(tmp_path: Path) -> None:
    old = old_sqlite("sqlite_1", tmp_path)
    with closing(sqlite3.connect(tmp_path / "batchray.db")) as connection:
        for table in ("leases", "pauses", "pending_calls", "conversations", "memories", "steps", "reopenings"):
            connection.execute(f"DROP TABLE {table}")
        connection.commit()
    with old.open() as store:
        assert store.jobs.start(old.job_id("unfinished")).epoch == 1


def drop_version_6(connection: sqlite3.Connection) -> None:
    """Remove what versions before 6 did not have."""
    connection.execute("DROP INDEX failed_outcomes")
    connection.execute("DROP TABLE tallies")
    connection.execute("ALTER TABLE reopenings DROP COLUMN failed_until_seq")


def drop_names(connection: sqlite3.Connection) -> None:
    """Remove the names of agents and the sizes of conversations, which versions before 5 did not have."""
    drop_version_6(connection)
    connection.execute("DROP INDEX agents_by_name")
    connection.execute("ALTER TABLE agents DROP COLUMN name")
    connection.execute("ALTER TABLE conversations DROP COLUMN n_messages")


def test_a_database_of_version_3_gets_the_reason_of_a_pause(tmp_path: Path) -> None:
    old = old_sqlite("sqlite_2", tmp_path)
    old.open().close()
    with closing(sqlite3.connect(tmp_path / "batchray.db")) as connection:  # what version 3 did not have
        connection.execute("ALTER TABLE jobs DROP COLUMN paused_because")
        connection.execute("ALTER TABLE jobs DROP COLUMN unused_fields")
        drop_names(connection)
        connection.execute("PRAGMA user_version = 3")
        connection.commit()
    with old.open() as store:
        job = store.jobs.start(old.job_id("unfinished"))
        store.jobs.pause(job, "its provider is away")
        assert store.jobs.get(job.id).paused_because == "its provider is away"


def test_a_database_of_version_4_gets_its_agents_blocks_as_they_were_edited(tmp_path: Path) -> None:
    old = old_sqlite("sqlite_2", tmp_path)
    old.open().close()
    human = {"label": "human", "value": "unknown", "limit": 50, "description": "Who?", "read_only": None}
    blocks = [human, {"label": "pets", "value": "cat"}]
    spec = json.dumps({"given": {"name": "a", "memory_blocks": blocks}, "agent": {"id": "a", "memory_blocks": blocks}})
    with closing(sqlite3.connect(tmp_path / "batchray.db")) as connection:  # as version 4 wrote it
        connection.execute("DROP TABLE blocks")
        connection.execute("DROP TABLE agent_blocks")
        drop_names(connection)
        row = ("agent-1", "user-1", "2026-01-01", "2026-01-02", spec.encode())
        connection.execute("INSERT INTO agents (id, user_id, created_at, updated_at, spec) VALUES (?, ?, ?, ?, ?)", row)
        memory = [("user-1", "agent-1", "human", b"Ada"), ("user-2", "agent-1", "human", b"another's")]
        connection.executemany("INSERT INTO memory_blocks VALUES (?, ?, ?, ?)", memory)
        connection.execute("PRAGMA user_version = 4")
        connection.commit()
    with old.open() as store:
        stored = store.agents.find("agent-1", "user-1")
        assert stored is not None
        assert stored.spec == {"given": {"name": "a"}, "agent": {"id": "a"}}
        assert store.agents.ids("user-1", "a") == ["agent-1"]
        human_block, pets_block = store.blocks.of_agent("agent-1")
        assert (human_block.label, human_block.value, human_block.limit) == ("human", "Ada", 50)
        assert (pets_block.label, pets_block.value, pets_block.limit) == ("pets", "cat", 20_000)
        assert (human_block.spec["description"], human_block.is_read_only) == ("Who?", False)
        assert human_block.id == "block-d6805be6-81ff-47bf-ad1c-8327fa7c3e36"  # as version 4 showed it
        # A job of version 4 knows the label alone.
        assert store.conversations.memory("user-1", "agent-1") == {"human": "Ada", "pets": "cat"}


def test_a_job_that_version_5_has_reopened_keeps_the_outcomes_of_its_present_run(tmp_path: Path) -> None:
    old = old_sqlite("sqlite_2", tmp_path)
    with old.open() as store:
        job_id, [first, *_] = old.job_id("finished"), store.items.results(store.jobs.get(old.job_id("finished")))
    with closing(sqlite3.connect(tmp_path / "batchray.db")) as connection:
        drop_version_6(connection)
        connection.execute("UPDATE outcomes SET status = 'errored' WHERE job = 1 AND idx = ?", (first.index,))
        connection.execute("UPDATE jobs SET completed_at = NULL WHERE id = ?", (job_id,))
        connection.execute("INSERT INTO reopenings SELECT job, '2026-01-01' FROM jobs WHERE id = ?", (job_id,))
        connection.execute("PRAGMA user_version = 5")
        connection.commit()
    with old.open() as store:
        run_all(store.reopenings.clear(job := store.jobs.start(job_id)))
        assert store.items.results(job, limit=1)[0].index == first.index


def test_a_job_of_version_2_that_never_had_a_lease_can_be_resumed(tmp_path: Path) -> None:
    old = old_sqlite("sqlite_2", tmp_path)
    with closing(sqlite3.connect(tmp_path / "batchray.db")) as connection:
        connection.execute("DELETE FROM leases")
        connection.commit()
    with old.open() as store:
        assert store.jobs.start(old.job_id("unfinished")).epoch == 1


def test_an_older_database_can_be_checked_and_exported_as_it_is(tmp_path: Path) -> None:
    old_sqlite("sqlite_2", tmp_path)
    for command in (["check"], ["export", "--output", str(tmp_path / "outcomes.jsonl")]):
        done = CliRunner().invoke(cli, ["db", *command, "--data-dir", str(tmp_path)])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "outcomes.jsonl").read_text().count("\n") > 1
