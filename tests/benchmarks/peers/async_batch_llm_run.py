"""async-batch-llm: `process_prompts` over an OpenAI-compatible model, with as many connections as workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from async_batch_llm import llm, process_prompts

from tests.benchmarks.peers.contender import Answer, serve
from tests.benchmarks.peers.works import Work


def run(work: Work) -> Callable[[], Iterator[Answer]]:
    model = llm("openai-compatible:m", base_url=work.base_url, api_key="none", max_connections=work.concurrency)
    batch = asyncio.run(process_prompts(model, work.prompts(), concurrency=work.concurrency, preserve_order=True))
    return lambda: (Answer(result.output or "", result.timing.execution_seconds) for result in batch.results)


if __name__ == "__main__":
    serve(run)
