"""Followers of a job of 6,000 items, of both kinds, while the server is terminated and started again five times.

Limits: no follower takes a cut for an end, and each resumes to 6,000 different results.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from tests.benchmarks.harness import report
from tests.polling import until
from tests.server.http_client import create, n_done
from tests.server.live import LiveServer, live_server
from tests.server.streaming import Follower

N_ITEMS, ITEM_S, N_RESTARTS, N_OF_A_KIND = 6000, 0.3, 5, 10
AGENTS = {"agents": [{"id": "wait", "run": "tests.cluster.agents:wait"}]}


async def _follow(server: LiveServer, followers: list[Follower], n_before_stop: int | None) -> None:
    """Follow to the end, or until the server is stopped when this many items are done."""
    following = asyncio.gather(*(follower.follow(server.url) for follower in followers))
    if n_before_stop is not None:
        await asyncio.to_thread(until, lambda: n_done(server, followers[0].job_id) >= n_before_stop, 120)
        assert await asyncio.to_thread(server.stop) == 0
    await following


def main() -> None:
    """Measure and print."""
    followers = list[Follower]()
    with tempfile.TemporaryDirectory(prefix="br") as directory:
        agents = Path(directory) / "agents.json"
        agents.write_text(json.dumps(AGENTS))
        for n_starts in range(N_RESTARTS + 1):
            with live_server(Path(directory) / "data", "--max-in-flight", "200", agents=agents) as server:
                if not followers:
                    job_id = create(server, [{"agent_id": "wait", "input": str(ITEM_S)}] * N_ITEMS)["id"]
                    followers = [Follower(job_id, kind) for kind in ("results", "events") for _ in range(N_OF_A_KIND)]
                n_before_stop = N_ITEMS * (n_starts + 1) // (N_RESTARTS + 2) if n_starts < N_RESTARTS else None
                asyncio.run(_follow(server, followers, n_before_stop))
    n_whole = [sorted(follower.indices) for follower in followers].count(list(range(N_ITEMS)))
    n_false = sum(follower.n_cuts != N_RESTARTS for follower in followers)
    ends = {follower.end for follower in followers}
    report(
        [
            f"{len(followers)} followers, {N_RESTARTS} restarts: {n_whole} got {N_ITEMS:,} different results",
            f"{n_false} took a cut for an end (limit 0)",
        ],
        is_held=n_whole == len(followers) and n_false == 0 and ends == {"complete", "completed"},
    )


if __name__ == "__main__":
    main()
