"""Streams of results while the server stops and starts again, and beside many followers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.polling import until
from tests.server.http_client import BATCHES, call, cancel, create, ended
from tests.server.live import LiveServer, live_server
from tests.server.streaming import Follower, opened

N_ITEMS = 120
WAITING = {"agents": [{"id": "wait", "run": "tests.cluster.agents:wait"}]}


async def follow_until_stopped(server: LiveServer, followers: list[Follower], is_time: Callable[[], bool]) -> None:
    """Follow, and stop the server when it is time; returns when all streams are over."""
    following = asyncio.gather(*(follower.follow(server.url) for follower in followers))
    await asyncio.to_thread(until, is_time)
    assert await asyncio.to_thread(server.stop) == 0
    await following


def test_a_stream_that_a_stopping_server_cuts_looks_cut_and_is_continued_to_its_end(tmp_path: Path) -> None:
    agents = tmp_path / "agents.json"
    agents.write_text(json.dumps(WAITING))

    def served() -> AbstractContextManager[LiveServer]:
        options = ("--max-in-flight", "10")
        return live_server(tmp_path / "data", *options, agents=agents, BATCHRAY_SHUTDOWN_GRACE_S="0.1")

    with served() as server:
        job_id = create(server, [{"agent_id": "wait", "input": "0.2"}] * N_ITEMS)["id"]
        followers = [Follower(job_id, kind) for kind in ("events", "results") for _ in range(3)]
        asyncio.run(follow_until_stopped(server, followers, lambda: all(each.indices for each in followers)))
        assert {(follower.end, follower.n_cuts) for follower in followers} == {(None, 1)}
        assert all(0 < len(follower.indices) < N_ITEMS for follower in followers)
        assert server.log.count("\n") == 1  # that it is stopping
    with served() as server:
        asyncio.run(_followed(server, followers))
    assert {follower.end for follower in followers} == {"completed", "complete"}
    assert all(sorted(follower.indices) == list(range(N_ITEMS)) for follower in followers)


async def _followed(server: LiveServer, followers: list[Follower]) -> None:
    await asyncio.gather(*(follower.follow(server.url) for follower in followers))


def test_followers_at_several_places_of_a_job_get_all_of_it(server: LiveServer) -> None:
    requests = [{"agent_id": "calculator", "input": f"What is {index} + 1?"} for index in range(N_ITEMS)]
    job_id = create(server, requests)["id"]
    followers = [Follower(job_id, kind) for kind in ("events", "results") for _ in range(20)]

    async def follow_one_after_the_other() -> None:
        following = []
        for follower in followers:
            following.append(asyncio.create_task(follower.follow(server.url)))
            await asyncio.sleep(0)
        await asyncio.gather(*following)

    asyncio.run(follow_one_after_the_other())
    assert {follower.end for follower in followers} == {"completed", "complete"}
    assert all(sorted(follower.indices) == list(range(N_ITEMS)) for follower in followers)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_long_list_is_sent_in_parts(server: LiveServer, order: str) -> None:
    script = json.dumps({"script": [{"text": "x" * 100_000}]})
    job_id = create(server, [{"agent_id": "planner", "input": script}] * 4)["id"]
    ended(server, job_id)

    def listed(query: str) -> tuple[list[str], bool]:
        answer = call(server, "GET", f"{BATCHES}/{job_id}/messages?order={order}&{query}")
        return [message["id"] for message in answer.body["messages"]], "Content-Length" not in answer.headers

    ids, is_in_parts = listed("limit=100")
    assert (len(ids), is_in_parts) == (8, True)
    assert [*listed("limit=1")[0], *listed(f"limit=1&after={ids[0]}")[0]] == ids[:2]
    assert listed(f"limit=5&before={ids[7]}") == (ids[2:7], True)
    assert listed(f"limit=1&before={ids[7]}")[0] == [ids[6]]
    assert listed(f"before={ids[0]}") == ([], False)
    assert listed(f"before={ids[6]}&after={ids[1]}") == (ids[2:6], True)


@pytest.mark.parametrize("kind", ["results?follow=true", "events"])
def test_a_stream_of_a_job_without_results_begins_at_once(server: LiveServer, kind: str) -> None:
    script = json.dumps({"script": [{"text": "too late", "delay_s": 300}]})
    job_id = create(server, [{"agent_id": "planner", "input": script}])["id"]

    async def status() -> int:
        async with opened(server.url, f"{BATCHES}/{job_id}/{kind}") as stream:
            return stream.status

    assert asyncio.run(status()) == 200
    assert call(server, "HEAD", f"{BATCHES}/{job_id}/{kind}").status == 200  # and it ends
    cancel(server, job_id)
    ended(server, job_id)
