"""A disk that is full, a database that is locked or damaged, a file system that is none of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from batchray.errors import ConfigError, JobInterruptedError, StoreCorruptError, StoreFullError, StoreUnavailableError
from batchray.jobs.driver import run_job
from batchray.schema import new_job_id
from batchray.store import NewItem, NewJob, Store, filesystem
from batchray.store.disk_reserve import RESERVE_BYTES, Reserve
from batchray.store.filesystem import network_fs
from tests.builders.commands import AGENTS, command, local
from tests.builders.jobs import Scripted, new_job, started
from tests.builders.records import agents_of, begin, check_integrity, items, outcome
from tests.builders.records import new_job as store_job
from tests.polling import wait_until


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


def fill(store: Store) -> None:
    """Stop the database from growing, as a full disk does."""
    n_pages = run(store, "PRAGMA page_count")
    run(store, f"PRAGMA max_page_count = {n_pages}")


def make_room(store: Store) -> None:
    run(store, "PRAGMA max_page_count = 1073741823")


def run(store: Store, statement: str) -> int:
    with store.database.backend.engine.connect() as connection:
        return int(connection.exec_driver_sql(statement).scalar() or 0)


# -- a full disk


async def test_a_full_disk_refuses_a_job_whole_and_takes_it_when_there_is_room(store: Store) -> None:
    fill(store)
    with pytest.raises(StoreFullError, match="database or disk is full"):
        store.jobs.create(NewJob(new_job_id(), agents_of), items(100, 1000))
    assert store.jobs.find() == []
    make_room(store)
    assert store_job(store, 100, 1000).total == 100


async def test_a_job_waits_while_the_disk_is_full_and_continues_by_itself(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "batchray")
    executor = Scripted(lambda order: fill(store) if order.index == 40 else None)
    job = await started(store, new_job(store, *["echo"] * 2000), max_in_flight=64)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: "waits: the store in" in caplog.text)
    n_spawned = len(executor.specs)
    for _ in range(100):
        await asyncio.sleep(0.001)
    assert not running.done()
    assert n_spawned < 2000
    make_room(store)
    record = await running
    assert record.counts["succeeded"] == 2000
    assert sorted(order.index for order in executor.specs) == list(range(2000))
    assert {each.attempts for each in store.items.results(record)} == {1}
    assert "continues: the store is available again" in caplog.text


async def test_a_job_can_be_interrupted_while_it_waits_for_room(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    executor = Scripted(lambda order: fill(store) if order.index == 40 else None)
    job_id = new_job(store, *["echo"] * 2000)
    job = await started(store, job_id, max_in_flight=64)
    running = asyncio.create_task(run_job(job, executor))
    await wait_until(lambda: "waits: the store in" in caplog.text)
    job.interrupt()
    with pytest.raises((JobInterruptedError, StoreFullError)):
        await running
    make_room(store)
    record = await run_job(await started(store, job_id), Scripted())
    assert record.counts["succeeded"] == 2000


def test_the_reserve_is_made_only_if_twice_its_size_is_free(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, 1 << 60)
    assert (reserve.acquire(), reserve.is_held, list(tmp_path.iterdir())) == (False, False, [])
    reserve = Reserve(tmp_path)
    assert reserve.acquire()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= RESERVE_BYTES
    reserve.release()
    reserve.release()
    assert not reserve.is_held


LIMITED = """
import resource, sys
from pathlib import Path
from batchray.errors import StoreFullError
from batchray.schema.progress import Progress
from batchray.schema import new_job_id
from batchray.store import NewAttempt, NewItem, NewJob, NewOutcome, Store

def outcome(index):
    return NewOutcome(
        index=index, attempt=1, status="succeeded", stop_reason="end_turn", error=None,
        usage={}, queued_ns=5, ttft_ns=None, duration_ns=7, messages=b'["%s"]' % (b"x" * 20_000),
    )

def create(n):
    job_id = new_job_id()
    store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b"{}") for _ in range(n)])
    return job_id

def refused():
    try:
        create(1)
    except StoreFullError:
        return True

store = Store.open(Path(sys.argv[1]))
old, job_id = create(300), create(2000)
store.jobs.end(store.jobs.start(old), "completed", "end_turn", Progress(), None, 0)
job = store.jobs.start(job_id)
store.outcomes.write(job, [NewAttempt(index, 1) for index in range(2000)])
assert (store.data_dir / "reserve").exists()
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, unlimited[1]))  # no file grows beyond it: the kernel's full disk
recorded = 0
try:
    while True:
        recorded += len(store.outcomes.write(job, [], [outcome(recorded)]))
except StoreFullError:
    pass
assert 0 < recorded < 2000, recorded
assert not (store.data_dir / "reserve").exists()
assert not store.has_room() and refused()
while store.retention.prune("9999"):  # what has ended can be deleted, although nothing more can be kept
    pass
assert [each.id for each in store.jobs.find()] == [job_id]
assert store.jobs.get(job_id).done == recorded
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
assert store.has_room() and (store.data_dir / "reserve").exists() and not refused()
assert len(store.outcomes.write(job, [], [outcome(recorded)])) == 1
store.close()
print("done")
"""


def test_a_full_disk_releases_the_reserve_and_deletion_and_reading_still_work(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    check_integrity(tmp_path)


def test_a_full_disk_is_one_sentence_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").write_text(AGENTS)
    (tmp_path / "requests.jsonl").write_bytes(b'{"agent_id": "a", "input": "%s"}\n' % (b"x" * 100_000) * 30)
    done = command(tmp_path, *local("requests.jsonl"), limits={resource.RLIMIT_FSIZE: 1_000_000})
    assert (done.status, done.out) == (1, "")
    sentence = done.err.splitlines()[-1]
    assert "is full; make room there" in sentence
    assert "Traceback" not in done.err


# -- locked by another program


@contextlib.contextmanager
def write_lock(store: Store) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(store.data_dir / "batchray.db", isolation_level=None)) as outsider:
        outsider.execute("BEGIN IMMEDIATE")
        yield


async def test_a_lock_of_an_outsider_is_waited_for_and_readers_read_on(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    run(store, "PRAGMA busy_timeout = 20")
    job = await started(store, new_job(store, *["echo"] * 50), max_in_flight=4)
    with write_lock(store):
        running = asyncio.create_task(run_job(job, Scripted()))
        await wait_until(lambda: "waits: the store in" in caplog.text)
        assert "database is locked" in caplog.text
        with Store.open_for_reading(store.data_dir) as reader:
            assert reader.jobs.get(job.record.id).done < 50
        with pytest.raises(StoreUnavailableError, match="database is locked"):
            store.jobs.create(NewJob(new_job_id(), agents_of), items(1))
    record = await running
    assert record.counts["succeeded"] == 50
    assert {each.attempts for each in store.items.results(record)} == {1}


# -- damaged


def damaged_store(data_dir: Path, n_jobs: int = 3) -> list[str]:
    """Make jobs, then write over a page of outcomes and one of requests; returns the jobs' ids."""
    with Store.open(data_dir) as store:
        made = []
        for _ in range(n_jobs):
            job_id = new_job_id()
            body = json.dumps({"agent_id": "a", "input": "x" * 300}).encode()
            store.jobs.create(NewJob(job_id, agents_of), [NewItem("a", f"c-{i}", body) for i in range(200)])
            made.append(store.jobs.start(job_id))
        for job in made:
            begin(store, job, *range(200))
            store.outcomes.write(job, [], [outcome(index) for index in range(200)])
    file = data_dir / "batchray.db"
    content = file.read_bytes()
    page_bytes = int.from_bytes(content[16:18], "big")
    with file.open("r+b") as opened:
        for part, start in ((b'{"prompt_tokens":10', len(content) // 3), (b"x" * 300, len(content) * 2 // 3)):
            opened.seek(content.index(part, start) // page_bytes * page_bytes)
            opened.write(b"\xa5" * page_bytes)
    return [job.id for job in made]


def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    damaged_store(tmp_path / ".batchray")
    with pytest.raises(StoreCorruptError, match=r"is damaged .*`batchray db check` .* `batchray db export --output F"):
        Store.open(tmp_path / ".batchray")
    (tmp_path / "agents.yaml").write_text(AGENTS)
    done = command(tmp_path, "serve", "--agents", "agents.yaml", "--executor", "local", "--port", "0")
    assert done.status == 1
    assert "batchray db export --output FILE" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_db_export_saves_the_readable_outcomes_of_a_damaged_file_and_names_the_rest(tmp_path: Path) -> None:
    job_ids = damaged_store(tmp_path / ".batchray")
    checked = command(tmp_path, "db", "check")
    assert checked.status == 1
    done = command(tmp_path, "db", "export", "--output", "saved.jsonl")
    assert done.status == 1
    assert "not readable: " in done.err
    assert "Traceback" not in done.err + checked.err
    lines = [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text().splitlines()]
    saved = {(line["job_id"], line["index"]) for line in lines}
    assert len(saved) == len(lines)
    assert saved < {(job_id, index) for job_id in job_ids for index in range(200)}
    assert len(saved) > 500
    assert "unreadable" in {line["agent_id"] for line in lines}  # an outcome whose request is lost
    assert {line["status"] for line in lines} == {"succeeded"}


GARBAGE = (
    "UPDATE outcomes SET messages = x'a5a5' WHERE job = 1 AND idx = 0",
    "UPDATE outcomes SET messages = CAST('[7]' AS BLOB) WHERE job = 1 AND idx = 1",
    "UPDATE outcomes SET usage = x'a5a5' WHERE job = 1 AND idx = 2",
    "UPDATE outcomes SET usage = CAST('[1]' AS BLOB) WHERE job = 1 AND idx = 3",
    "UPDATE outcomes SET error = CAST('[1]' AS BLOB) WHERE job = 1 AND idx = 4",
    "UPDATE items SET request = x'a5a5' WHERE job = 1 AND idx = 5",
    "UPDATE outcomes SET status = 'garbage' WHERE job = 1 AND idx = 6",
    "UPDATE jobs SET progress = x'a5a5', agents = x'a5a5' WHERE job = 2",
    "UPDATE jobs SET progress = CAST('{}' AS BLOB) WHERE job = 3",
)


def test_bytes_that_are_no_json_cost_their_own_item_alone(tmp_path: Path) -> None:
    body = b'{"agent_id": "a", "input": "x"}'
    with Store.open(tmp_path / ".batchray") as store:
        for _ in range(3):
            store.jobs.create(NewJob(new_job_id(), agents_of), [NewItem("a", None, body)] * 100)
        for made in store.jobs.find():
            job = store.jobs.start(made.id)
            begin(store, job, *range(100))
            store.outcomes.write(job, [], [outcome(index) for index in range(100)])
        job_ids = [made.id for made in store.jobs.find()]
    with contextlib.closing(sqlite3.connect(tmp_path / ".batchray" / "batchray.db", isolation_level=None)) as outsider:
        for damage in GARBAGE:
            outsider.execute(damage)
    done = command(tmp_path, "db", "export", "--output", "saved.jsonl")
    assert done.status == 1
    assert "Traceback" not in done.err
    lines = [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text().splitlines()]
    every = [(job_id, index) for job_id in job_ids for index in range(100)]
    assert [(line["job_id"], line["index"]) for line in lines] == every[7:]
    for index in range(7):
        assert f"not readable: {job_ids[0]}: the outcome of item {index}\n" in done.err


def test_a_whole_file_is_checked_and_exported_whole(tmp_path: Path) -> None:
    with Store.open(tmp_path / ".batchray") as store:
        job_id = new_job_id()
        body = b'{"agent_id": "a", "input": "x"}'
        store.jobs.create(NewJob(job_id, agents_of), [NewItem("a", None, body)] * 150)
        job = store.jobs.start(job_id)
        begin(store, job, *range(100))
        store.outcomes.write(job, [], [outcome(index) for index in range(100)])
    assert command(tmp_path, "db", "check")[:2] == (0, "1 jobs, 150 items, 100 outcomes\n")
    done = command(tmp_path, "db", "export", "--output", "all.jsonl")
    assert done == (0, "100 outcomes written to all.jsonl\n", "")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(line["job_id"], line["index"]) for line in lines] == [(job_id, index) for index in range(100)]


def test_counts_that_do_not_fit_together_are_named(store: Store) -> None:
    job = store_job(store, 3)
    with contextlib.closing(sqlite3.connect(store.data_dir / "batchray.db", isolation_level=None)) as outsider:
        outsider.execute("DELETE FROM items WHERE idx = 1")
    assert store.integrity.check().problems == [f"{job.id}: 2 items, but 3 were accepted"]


# -- network file systems

MOUNTS = """\
/dev/root / ext4 rw,relatime 0 0
filer:/home /home nfs4 rw 0 0
/dev/sdb /home/me/local\\040disk xfs rw 0 0
me@host: /mnt/far fuse.sshfs rw 0 0
/dev/sdc /mnt/stick fuse.ntfs-3g rw 0 0
//server/share /mnt/share cifs rw 0 0
host /mnt/host 9p rw 0 0
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/srv/data", None),
        ("/home/me/data", "nfs4"),
        ("/homely", None),
        ("/home/me/local disk/data", None),
        ("/mnt/far", "fuse.sshfs"),
        ("/mnt/stick/data", None),
        ("/mnt/share/data", "cifs"),
        ("/mnt/host/a/b", "9p"),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(directory: str, kind: str | None) -> None:
    assert network_fs(Path(directory), MOUNTS) == kind


def test_a_data_directory_on_a_network_file_system_is_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/root / ext4 rw 0 0\nfiler:/ {tmp_path} nfs rw 0 0\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", mounts)  # to mount one needs a server and rights
    with pytest.raises(ConfigError, match=r"is on a network file system \(nfs\), where SQLite can lose data; use a"):
        Store.open(tmp_path / "data")
    with Store.open(tmp_path / "data", allow_network_fs=True) as store:
        assert store.jobs.find() == []
