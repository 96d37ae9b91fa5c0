"""Inspect AI: one task without a scorer, with as many samples and connections at once as the work asks for.

Its log, which keeps every sample, is written to disk as by default, except the copy for its live view.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import get_model
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool

from tests.benchmarks.peers import works
from tests.benchmarks.peers.contender import Answer, serve
from tests.benchmarks.peers.works import Work


@tool  # type: ignore[untyped-decorator,unused-ignore]
def add() -> Any:
    """Return the tool."""

    async def execute(a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        return await works.add(a, b)

    return execute


def run(directory: str, work: Work) -> Callable[[], Iterator[Answer]]:
    samples = [Sample(id=index, input=prompt) for index, prompt in enumerate(work.prompts())]
    solver = [use_tools(add()), generate()] if work.has_tools else [generate()]
    (log,) = evaluate(
        Task(dataset=MemoryDataset(samples), solver=solver),
        model=get_model("openai-api/mock/m", base_url=work.base_url, api_key="none", memoize=False),
        max_connections=work.concurrency,
        max_samples=work.concurrency,
        display="none",
        log_dir=directory,
        log_realtime=False,
    )

    def read() -> Iterator[Answer]:
        for sample in sorted(log.samples or (), key=lambda sample: int(sample.id)):
            yield Answer(sample.output.completion, sample.total_time)

    return read


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        serve(functools.partial(run, directory))
