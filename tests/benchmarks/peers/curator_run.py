"""Curator: its OpenAI backend, without effective limits of rate; its cache of answers is in a new directory."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.contender import Answer, serve
from tests.benchmarks.peers.works import Work

_NO_LIMIT = 1_000_000_000


def run(curator: Any, work: Work) -> Callable[[], Iterator[Answer]]:
    parameters = {
        "base_url": work.base_url,
        "api_key": "none",
        "max_concurrent_requests": work.concurrency,
        "max_requests_per_minute": _NO_LIMIT,
        "max_tokens_per_minute": _NO_LIMIT,
    }
    model = curator.LLM(model_name="gpt-4o-mini", backend="openai", backend_params=parameters)
    with tempfile.TemporaryDirectory() as directory:
        answered = model(work.prompts(), working_dir=directory)
        texts = [row["response"] for row in answered.dataset]
    return lambda: (Answer(text) for text in texts)


def _imported() -> Any:
    """Import Curator, with the prices and tokenizers that are installed, so that nothing is loaded from elsewhere."""
    tokenizers = next(file for file in files("litellm") or () if file.match("*/tokenizers/__init__.py"))
    os.environ |= {
        "TELEMETRY_ENABLED": "false",
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "true",
        "TIKTOKEN_CACHE_DIR": str(Path(tokenizers.locate()).parent),
    }
    from bespokelabs import curator

    return curator


if __name__ == "__main__":
    serve(functools.partial(run, _imported()))
