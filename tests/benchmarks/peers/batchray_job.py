"""batchray as a user runs it: a job on a private Ray cluster, every outcome stored in SQLite on disk."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import batchray
from tests.benchmarks.harness import agents, data_dir
from tests.benchmarks.peers.contender import Answer, serve
from tests.benchmarks.peers.works import Work


def run(directory: Path, work: Work, *, is_idempotent: bool) -> Callable[[], Iterator[Answer]]:
    requests = [{"agent_id": "a", "input": prompt, "custom_id": str(i)} for i, prompt in enumerate(work.prompts())]
    add = {"function": "tests.benchmarks.peers.works:add", "idempotent": is_idempotent}
    tools = {"tools": [add]} if work.has_tools else {}
    job = batchray.run(
        requests,
        **agents(work.base_url, **tools),
        data_dir=directory,
        max_in_flight=work.concurrency,
        progress=False,
    )

    def read() -> Iterator[Answer]:
        for result in sorted(job.results(), key=lambda result: result.index):
            yield Answer(result.text or "", (result.timing.duration_ns or 0) / 1e9)

    return read


if __name__ == "__main__":
    with data_dir() as directory:
        serve(functools.partial(run, directory, is_idempotent=sys.argv[1:] != ["stored"]))
