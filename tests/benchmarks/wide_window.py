"""4,000 requests at a model latency of 2 s, 1,000 in flight, on one machine: wall time against the ideal 8 s.

Limit: 1.25 times the ideal.
"""

from __future__ import annotations

import asyncio
import time

import batchray
from tests.benchmarks.cpu_per_request import bare_aiohttp
from tests.benchmarks.harness import agents, data_dir, provider, report, requests

N, WINDOW, LATENCY_S = 4000, 1000, 2.0


def main() -> None:
    """Measure and print."""
    with provider(tokens=50, latency_s=LATENCY_S) as base_url, data_dir() as directory:
        started = time.monotonic()
        asyncio.run(bare_aiohttp(base_url, N, WINDOW))
        bare_s = time.monotonic() - started
        options = {"data_dir": directory, "max_in_flight": WINDOW, "progress": False, **agents(base_url)}
        batchray.run(requests(WINDOW), **options)  # warm: lanes started, connections open
        job = batchray.run(requests(N), **options)
        record, timing = job.record(), job.timing["duration"]
        assert record.counts["succeeded"] == N, record.counts
    wall_s, ideal_s = (record.total_duration_ns or 0) / 1e9, N / WINDOW * LATENCY_S
    report(
        [
            f"ideal    {ideal_s:6.2f} s ({N} requests of {LATENCY_S:g} s, {WINDOW} at once)",
            f"bare   {bare_s:7.2f} s: an aiohttp loop without Ray, store, agents or retries",
            f"batchray {wall_s:6.2f} s, request p50 {timing.p50:.2f} s, p95 {timing.p95:.2f} s",
            f"batchray / bare = {wall_s / bare_s:.2f}, bare / ideal = {bare_s / ideal_s:.2f}",
            f"batchray / ideal = {wall_s / ideal_s:.2f} (limit 1.25)",
        ],
        is_held=wall_s <= 1.25 * ideal_s,
    )


if __name__ == "__main__":
    main()
