"""Streams of results: what readers share, and where their pages end."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.errors import UnknownJobError
from batchray.schema import new_id, new_job_id
from batchray.schema.progress import Progress
from batchray.server.job_feeds import JobFeeds
from batchray.server.result_streams import PageSource, ResultForm
from batchray.server.shared_pages import SharedPage, SharedPages
from batchray.server.stalled_readers import ReaderProgress, StalledReaders
from batchray.server.stream import StreamCutError
from batchray.store import JobRecord, LedJob, NewItem, NewJob, Store, ThreadedStore
from batchray.store.database import n_that_fit
from batchray.views.result_pages import START, ResultPosition
from tests.builders.records import agents_of, begin, outcome

N_ITEMS = 12


class Counting(ThreadedStore):
    """A reader that counts its calls."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.n_calls = 0

    async def call(self, method: Any, /, *args: Any, **keywords: Any) -> Any:
        self.n_calls += 1
        return await super().call(method, *args, **keywords)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path)
    yield store
    store.close()


@pytest.fixture
def reader(store: Store, tmp_path: Path) -> Iterator[Counting]:
    store = Store.open_for_reading(tmp_path)
    yield Counting(store)
    store.close()


def job_of(store: Store, n: int = N_ITEMS) -> LedJob:
    job_id = new_job_id()
    requests = [NewItem("a", None, b'{"agent_id":"a","input":"%d"}' % index) for index in range(n)]
    store.jobs.create(NewJob(job_id, agents_of), requests)
    job = store.jobs.start(job_id)
    begin(store, job, *range(n))
    return job


def finish(store: Store, job: LedJob, *indices: int, size: int = 0) -> None:
    """Record outcomes in this order; every third item fails."""
    content = [{"type": "text", "text": "x" * size}]
    said = {"id": new_id("message"), "role": "assistant", "created_at": "2026-01-01T00:00:00Z", "content": content}
    messages = json.dumps([said] if size else []).encode()
    for index in indices:
        status = "errored" if index % 3 == 0 else "succeeded"
        store.outcomes.write(job, [], [replace(outcome(index, status=status, messages=messages))])


def pages(source: PageSource, *, is_final: bool) -> list[SharedPage]:
    found, position = [], START
    while (page := source.page(position, is_final=is_final)).n_results:
        found.append(page)
        position = page.position
    return found


def indices_of(found: list[SharedPage]) -> list[int]:
    return [json.loads(line)["index"] for page in found for line in page.text.splitlines()]


# -- pages


@given(st.lists(st.integers(0, 100)), st.integers(0, 200))
def test_as_many_rows_fit_as_have_the_bytes_together_and_the_first_one_always(sizes: list[int], limit: int) -> None:
    n_fit = n_that_fit(sizes, limit)
    assert (n_fit > 0) == bool(sizes)
    assert n_fit <= 1 or sum(sizes[:n_fit]) <= limit
    assert n_fit == len(sizes) or sum(sizes[: n_fit + 1]) > limit


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize(
    ("order", "is_final", "shown"),
    [
        ("finish", True, [5, 0, 1, 3, 2, 9]),
        ("finish", False, [5, 0, 1, 3, 2, 9]),
        ("index", True, [0, 1, 2, 3, 5, 9]),
        ("index", False, [0, 1, 2, 3]),  # a result waits for those before it
    ],
)
def test_pages_have_the_results_of_their_order_and_only_failed_ones_if_asked(
    store: Store, order: Any, is_final: bool, shown: list[int], failed: bool
) -> None:
    job = job_of(store)
    finish(store, job, 5, 0, 1, 3, 2, 9)
    found = pages(PageSource(store, job, ResultForm("lines", order, failed)), is_final=is_final)
    assert indices_of(found) == [index for index in shown if index % 3 == 0 or not failed]


@pytest.mark.parametrize("kind", ["lines", "events"])
def test_a_result_that_is_larger_than_a_page_has_one_of_its_own(store: Store, kind: Any) -> None:
    job = job_of(store)
    finish(store, job, 0, 1)
    finish(store, job, 2, 4, size=300_000)
    finish(store, job, 5, 7, size=100_000)
    found = pages(PageSource(store, job, ResultForm(kind, "finish")), is_final=True)
    assert [page.n_results for page in found] == [2, 1, 1, 2]
    assert sum(len(page.text) for page in found) < (10_000 if kind == "events" else 900_000)


# -- sharing


def a_page(size: int = 1) -> SharedPage:
    return SharedPage(b"x" * size, 1, ResultPosition(0, 1))


async def test_readers_at_the_same_place_share_one_page() -> None:
    shared, made = SharedPages(), []

    async def make() -> SharedPage:
        made.append(1)
        await asyncio.sleep(0)
        return a_page()

    got = await asyncio.gather(*(shared.get("here", make) for _ in range(50)))
    assert len({id(page) for page in got}) == len(made) == 1
    assert await shared.get("there", make) is not got[0]


async def test_a_page_that_a_reader_has_is_not_made_again_and_others_are_forgotten_by_bytes() -> None:
    shared, made = SharedPages(recent_bytes=100), list[str]()

    def get(key: str, size: int = 40) -> Any:
        async def make() -> SharedPage:
            made.append(key)
            return a_page(size)

        return shared.get(key, make)

    held = await get("held", 1000)
    for key in "abcb":
        assert len((await get(key)).text) == 40
    assert await get("held", 1000) is held
    assert await get("c") == await get("a")
    assert made == ["held", "a", "b", "c", "a"]
    shared.forget()
    assert await get("held", 1000) is held
    await get("a")
    assert made[5:] == ["a"]


async def test_a_page_that_could_not_be_made_is_made_for_the_next_reader() -> None:
    shared, tries = SharedPages(), itertools.count()

    async def make() -> SharedPage:
        if next(tries) == 0:
            raise UnknownJobError("job-1")
        return a_page()

    with pytest.raises(UnknownJobError):
        await shared.get("here", make)
    assert await shared.get("here", make) == a_page()


# -- feeds


async def followed(feeds: JobFeeds, job: JobRecord) -> str:
    async with feeds.follow(job) as feed:
        state = feed.state
        while not state.record.is_ended:
            state = await feed.next(state, timeout_s=60)
        return state.record.status


async def test_followers_of_a_job_share_one_poll_and_see_its_end(store: Store, reader: Counting) -> None:
    job = job_of(store)
    feeds = JobFeeds(reader, poll_s=0)
    following = [asyncio.create_task(followed(feeds, job)) for _ in range(100)]
    while reader.n_calls < 5:
        await asyncio.sleep(0)
    assert not any(task.done() for task in following)
    finish(store, job, *range(N_ITEMS))
    store.jobs.end(job, "completed", "end_turn", Progress(N_ITEMS), None, 1)
    n_before = reader.n_calls
    assert set(await asyncio.gather(*following)) == {"completed"}
    assert reader.n_calls - n_before <= 2


async def test_followers_of_a_feed_that_is_cut_get_an_error_and_later_ones_are_refused(
    store: Store, reader: Counting
) -> None:
    job, feeds = job_of(store), JobFeeds(reader)
    following = asyncio.create_task(followed(feeds, job))
    await asyncio.sleep(0)
    feeds.cut()
    with pytest.raises(StreamCutError):
        await following
    with pytest.raises(Exception, match="503"):
        await followed(feeds, job)


async def test_followers_of_a_job_that_is_deleted_are_cut(
    store: Store, reader: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    feeds, deleted = JobFeeds(reader, poll_s=0), replace(job_of(store), id=new_job_id())
    following = [asyncio.create_task(followed(feeds, deleted)) for _ in range(3)]
    errors = await asyncio.gather(*following, return_exceptions=True)
    assert {type(error) for error in errors} == {StreamCutError}
    assert len(caplog.records) == 1


# -- readers that take nothing


def test_only_readers_that_take_nothing_for_the_whole_time_have_stalled() -> None:
    silent, slow, idle = transports = [cast(asyncio.Transport, object()) for _ in range(3)]
    seen = {silent: ReaderProgress(100, 7), slow: ReaderProgress(100, 0), idle: ReaderProgress(0, 0)}
    readers = StalledReaders(30.0, seen.__getitem__)
    for now in range(0, 30, 10):
        assert readers.stalled(transports, now) == []
        seen[slow] = ReaderProgress(100, now)
    assert readers.stalled(transports, 30) == [silent]
    seen[slow] = ReaderProgress(600, 20)  # more was sent, of which it takes nothing
    assert readers.stalled([slow, idle], 59) == []
    assert readers.stalled([slow, idle], 60) == [slow]
