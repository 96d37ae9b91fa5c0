"""The bare loop in Ray actors, one for each core, which take one call a request; no store, no retries."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from typing import Any

import ray

from tests.benchmarks.peers.aiohttp_loop import new_session, stream
from tests.benchmarks.peers.contender import Answer, serve
from tests.benchmarks.peers.hand_loop import answer
from tests.benchmarks.peers.works import Work

_N_ACTORS = os.cpu_count() or 1


class Asker:
    """Asks on one session, for a part of the requests of a work."""

    async def start(self, work: Work) -> None:
        self._work, self._session = work, new_session()
        self._window = asyncio.Semaphore(max(1, work.concurrency // _N_ACTORS))

    async def ask(self, prompt: str) -> str:
        async with self._window:
            return await answer(prompt, functools.partial(stream, self._session, self._work))

    async def stop(self) -> None:
        await self._session.close()


def run(actors: list[Any], work: Work) -> Callable[[], list[Answer]]:
    ray.get([actor.start.remote(work) for actor in actors])
    prompts = enumerate(work.prompts())
    texts = ray.get([actors[index % _N_ACTORS].ask.remote(prompt) for index, prompt in prompts])
    ray.get([actor.stop.remote() for actor in actors])
    return lambda: [Answer(text) for text in texts]


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    kind = ray.remote(Asker).options(max_concurrency=10_000)
    serve(functools.partial(run, [kind.remote() for _ in range(_N_ACTORS)]))
