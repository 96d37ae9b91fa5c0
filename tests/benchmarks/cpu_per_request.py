"""CPU per request (single step, 50-token streamed answer, store on) against bare loops over the same provider.

Limit: under half of a bare loop over the OpenAI SDK's async client.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time

import aiohttp
import openai
import orjson

import batchray
from tests.benchmarks.harness import TreeCpu, agents, data_dir, provider, report, requests

N = 3000
WINDOW = 64


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def bare_aiohttp(base_url: str, n: int, max_in_flight: int = WINDOW) -> None:
    """Stream replies over one aiohttp session and join their deltas, with a fixed number of requests in flight."""
    window = asyncio.Semaphore(max_in_flight)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(index: int) -> str:
            body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": f"{index} Say something."}]}
            text = []
            async with window, session.post(f"{base_url}/chat/completions", data=orjson.dumps(body)) as response:
                rest = b""
                async for chunk in response.content.iter_any():
                    *events, rest = (rest + chunk).split(b"\n\n")
                    for event in events:
                        if event != b"data: [DONE]":
                            choices = orjson.loads(event[6:])["choices"]
                            text.append(choices[0]["delta"].get("content") or "" if choices else "")
            return "".join(text)

        await asyncio.gather(*(one(index) for index in range(n)))


async def _bare_openai(base_url: str, n: int) -> None:
    """Stream replies with the OpenAI SDK and join their deltas, with WINDOW requests in flight."""
    window = asyncio.Semaphore(WINDOW)
    async with openai.AsyncOpenAI(api_key="none", base_url=base_url) as client:

        async def one(index: int) -> str:
            async with window:
                stream = await client.chat.completions.create(
                    model="m", stream=True, messages=[{"role": "user", "content": f"{index} Say something."}]
                )
                return "".join(
                    [chunk.choices[0].delta.content or "" if chunk.choices else "" async for chunk in stream]
                )

        await asyncio.gather(*(one(index) for index in range(n)))


def baseline(name: str, base_url: str, n: int) -> float:
    """Return the CPU milliseconds per request of a bare loop, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.cpu_per_request", name, base_url, str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    with provider(tokens=50) as base_url, data_dir() as directory:
        sdk = baseline("openai", base_url, N // 3)
        bare = baseline("aiohttp", base_url, N)
        options = {"data_dir": directory, "max_in_flight": WINDOW, "progress": False, **agents(base_url)}
        batchray.run(requests(200), **options)  # warm: lanes started, code imported
        cpu, started = TreeCpu(), time.monotonic()
        job = batchray.run(requests(N), **options)
        spent, wall_s = cpu.spent(), time.monotonic() - started
        assert job.counts["succeeded"] == N, job.counts
    ours = sum(spent.values()) / N * 1e3
    parts = ", ".join(f"{kind} {seconds / N * 1e3:.2f}" for kind, seconds in spent.items())
    report(
        [
            f"bare aiohttp loop    {bare:6.2f} ms of CPU a request",
            f"bare OpenAI SDK loop {sdk:6.2f} ms",
            f"batchray             {ours:6.2f} ms ({parts}); {N / wall_s:.0f} requests/s",
            f"batchray / OpenAI SDK loop = {ours / sdk:.2f} (limit 0.50)",
        ],
        is_held=ours < sdk / 2,
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        loop = {"openai": _bare_openai, "aiohttp": bare_aiohttp}[sys.argv[1]]
        asyncio.run(loop(sys.argv[2], 50))  # warm
        start = _cpu()
        asyncio.run(loop(sys.argv[2], int(sys.argv[3])))
        print((_cpu() - start) / int(sys.argv[3]) * 1e3)
    else:
        main()
