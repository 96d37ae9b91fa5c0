"""The contender's side: a process that reads works from standard input and prints the result of each, as JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from statistics import median
from typing import Any, NamedTuple

from tests.benchmarks.peers.works import Work, is_right


class Answer(NamedTuple):
    """The text of a request's answer, and how long the contender says that the request took, in seconds."""

    text: str
    duration_s: float | None = None


Run = Callable[[Work], Callable[[], Iterable[Answer]]]
"""Runs a work to its end, and returns what reads the answers, in the order of the prompts; reading is not measured."""


def serve(run: Run) -> None:
    """Run works until standard input ends."""
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)  # what the contender prints does not mix with the results
        for line in sys.stdin:
            work = Work(*json.loads(line))
            started = time.monotonic()
            read = run(work)
            times = {"started": started, "ended": time.monotonic()}
            print(json.dumps(times | _summary(work, read())), file=results, flush=True)


def _summary(work: Work, answers: Iterable[Answer]) -> dict[str, Any]:
    n_right, others, slow = 0, list[float](), list[float]()
    for index, answer in enumerate(answers):
        n_right += is_right(answer.text)
        if answer.duration_s is not None:
            (slow if work.is_slow(index) else others).append(answer.duration_s)
    return {
        "n_right": n_right,
        "p50_s": median(others) if others else None,
        "slowest_s": max(slow) if slow else None,
    }


async def in_window(work: Work, ask: Callable[[str], Awaitable[str]]) -> list[Answer]:
    """Ask for each prompt, with the work's number of them at once."""
    window = asyncio.Semaphore(work.concurrency)

    async def one(prompt: str) -> Answer:
        async with window:
            started = time.monotonic()
            text = await ask(prompt)
            return Answer(text, time.monotonic() - started)

    return await asyncio.gather(*map(one, work.prompts()))
