"""The HTTP stage of ray.data.llm: one request a batch, and as many batches at once as the work asks for.

Within a batch the stage sends one request after the other, so batches of one request are its fastest setting.  The
stage opens a session for each batch; the sessions of a process share their connections here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import ray
from ray.data._internal.planner import plan_udf_map_op
from ray.data.llm import HttpRequestProcessorConfig, build_processor

from tests.benchmarks.peers.contender import Answer, serve
from tests.benchmarks.peers.works import Work

_N_ACTORS = os.cpu_count() or 1
_connectors = list[aiohttp.TCPConnector]()


def _session() -> aiohttp.ClientSession:
    if not _connectors:
        _connectors.append(aiohttp.TCPConnector(limit=0))
    return aiohttp.ClientSession(connector=_connectors[0], connector_owner=False)


def run(work: Work) -> Callable[[], Iterator[Answer]]:
    # RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY, which is read at import; each work has a number of its own.
    plan_udf_map_op.DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY = max(1, work.concurrency // _N_ACTORS)
    config = HttpRequestProcessorConfig(
        url=f"{work.base_url}/chat/completions",
        batch_size=1,
        concurrency=(_N_ACTORS, _N_ACTORS),
        session_factory=_session,
    )
    processor = build_processor(config, preprocess=_payload, postprocess=_answer)
    rows = [{"index": index, "prompt": prompt} for index, prompt in enumerate(work.prompts())]
    done = processor(ray.data.from_items(rows, override_num_blocks=_N_ACTORS)).take_all()
    return lambda: (Answer(row["text"]) for row in sorted(done, key=lambda row: row["index"]))


def _payload(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "payload": {"model": "m", "messages": [{"role": "user", "content": row["prompt"]}]}}


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {"index": row["index"], "text": row["http_response"]["choices"][0]["message"]["content"]}


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    serve(run)
