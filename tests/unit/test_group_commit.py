from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchray.jobs.deadlines import PausableDeadlines
from batchray.jobs.group_commit import GroupCommitter
from batchray.store import LedJob, NewAttempt, Store
from tests.builders.jobs import new_job
from tests.builders.timed_store import TimedStore
from tests.builders.virtual_time import in_virtual_time

COMMIT_S, INTERVAL_S = 0.004, 0.02
N_ITEMS = 400


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TimedStore]:
    with Store.open(tmp_path / "data") as opened:
        yield TimedStore(opened, COMMIT_S)


def committer_of(store: TimedStore, job: LedJob | None = None) -> GroupCommitter:
    job = job or store.sync.jobs.start(new_job(store.sync, *["echo"] * N_ITEMS))
    return GroupCommitter(store, job, PausableDeadlines(), INTERVAL_S)


@in_virtual_time
async def test_a_lone_write_starts_at_once_and_so_does_the_next_one(store: TimedStore) -> None:
    committer = committer_of(store)
    handed_in = []
    for index in range(5):
        handed_in.append(now())
        await committer.begin(NewAttempt(index, 1))
        await asyncio.sleep(0.001)
    assert store.starts == handed_in


@in_virtual_time
async def test_writes_that_arrive_during_a_commit_share_the_next_one(store: TimedStore) -> None:
    committer = committer_of(store)
    first = asyncio.create_task(committer.begin(NewAttempt(0, 1)))
    await asyncio.sleep(COMMIT_S / 2)
    await asyncio.gather(*(committer.begin(NewAttempt(index, 1)) for index in range(1, 10)))
    await first
    assert len(store.starts) == 2


@in_virtual_time
async def test_commits_under_load_are_an_interval_apart(store: TimedStore) -> None:
    job = store.sync.jobs.start(new_job(store.sync, *["echo"] * N_ITEMS))
    committer = committer_of(store, job)

    async def write(index: int) -> float:
        await asyncio.sleep(index * 0.0005)
        handed_in = now()
        await committer.begin(NewAttempt(index, 1))
        return now() - handed_in

    waits = await asyncio.gather(*map(write, range(N_ITEMS)))
    gaps = [later - earlier for earlier, later in zip(store.starts, store.starts[1:], strict=False)]
    assert max(gaps) <= INTERVAL_S + COMMIT_S + 1e-9
    assert len(store.starts) <= now() / INTERVAL_S + 5  # the first ones are closer together
    assert max(waits) <= INTERVAL_S + 2 * COMMIT_S + 1e-9
    assert [item.attempt for item in store.sync.items.unfinished(job, -1)] == [1] * N_ITEMS


@in_virtual_time
async def test_a_write_that_something_waits_for_is_soon_on_its_way_and_others_gather(store: TimedStore) -> None:
    job = store.sync.jobs.start(new_job(store.sync, *["echo"] * N_ITEMS))
    committer = GroupCommitter(store, job, PausableDeadlines(), 0.05)
    counted = [committer.count_ahead(index) for index in range(100)]
    await asyncio.sleep(COMMIT_S * 2)
    later = committer.count_ahead(100)
    await asyncio.sleep(0.03)
    assert all(each is not None and each.done() for each in counted)
    assert later is not None
    assert not later.done()  # it gathers for 50 ms
    await committer.begin(NewAttempt(101, 1))
    assert later.done()
    assert store.starts == pytest.approx([0, 2 * COMMIT_S + 0.03])
    await asyncio.gather(*(committer.begin(NewAttempt(index, 1)) for index in range(102, N_ITEMS)))
    assert store.starts[-1] - store.starts[-2] < 0.01  # after a commit of two writes
    handed_in = now()
    await committer.begin(NewAttempt(101, 2))
    assert now() - handed_in == pytest.approx(0.02 + COMMIT_S)  # after one of hundreds


@in_virtual_time
async def test_a_drain_waits_for_the_last_commit_and_for_nothing_after_it(store: TimedStore) -> None:
    committer = committer_of(store)
    await committer.drain()
    for index in range(100):
        committer.count_ahead(index)
    await committer.drain()
    assert now() == pytest.approx(COMMIT_S)
    last = committer.count_ahead(100)
    await committer.drain()
    assert last is not None
    assert last.done()
    await committer.drain()
    assert now() == pytest.approx(2 * COMMIT_S + INTERVAL_S)
