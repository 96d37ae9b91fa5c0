"""CPU per request (single step, streamed answer, store on) against bare loops over the same provider.

Limits, for answers of 50 tokens: 0.26 of a bare loop over the OpenAI SDK's async client, and 7.3 bare loops over
aiohttp (1.9 ms if one takes 0.26 ms).  The cost of a token is the difference to answers of 500 tokens, at most 1.5
times that of the bare loop over aiohttp.  Both are of the same number of requests, because a job has costs of its own,
such as the start of its actor.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import openai
import orjson

import batchray
from tests.benchmarks.harness import TreeCpu, agents, data_dir, provider, report, requests

N = 3000
WINDOW = 64
MAX_OF_SDK = 0.26
MAX_OF_BARE = 7.3
MAX_TOKEN_OF_BARE = 1.5
SHORT, LONG = 50, 500  # tokens of an answer


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
    with data_dir() as directory:
        with provider(tokens=SHORT) as base_url:
            sdk = baseline("openai", base_url, N // 3)
            bare = baseline("aiohttp", base_url, N)
            parts, rate = _ours(base_url, directory, N)
        with provider(tokens=LONG) as base_url:
            bare_long = baseline("aiohttp", base_url, N)
            long, _ = _ours(base_url, directory, N)
    ours = sum(parts.values())
    shown = ", ".join(f"{kind} {cpu_ms:.2f}" for kind, cpu_ms in parts.items())
    of_token = {kind: (long[kind] - cpu_ms) / (LONG - SHORT) * 1e3 for kind, cpu_ms in parts.items()}
    token_us, bare_token_us = sum(of_token.values()), (bare_long - bare) / (LONG - SHORT) * 1e3
    token_shown = ", ".join(f"{kind} {cpu_us:.1f}" for kind, cpu_us in of_token.items())
    report(
        [
            f"bare aiohttp loop    {bare:6.2f} ms of CPU a request, and {bare_token_us:.1f} us a token more",
            f"bare OpenAI SDK loop {sdk:6.2f} ms",
            f"batchray             {ours:6.2f} ms ({shown}); {rate:.0f} requests/s",
            f"                     and {token_us:.1f} us a token more ({token_shown})",
            f"batchray / OpenAI SDK loop = {ours / sdk:.2f} (limit {MAX_OF_SDK})",
            f"batchray / bare aiohttp loop = {ours / bare:.1f} (limit {MAX_OF_BARE})",
            f"a token more: batchray / bare aiohttp loop = {token_us / bare_token_us:.2f} (limit {MAX_TOKEN_OF_BARE})",
        ],
        is_held=ours <= MAX_OF_SDK * sdk
        and ours <= MAX_OF_BARE * bare
        and token_us <= MAX_TOKEN_OF_BARE * bare_token_us,
    )


def _ours(base_url: str, directory: Path, n: int) -> tuple[dict[str, float], float]:
    """Run n requests; return the CPU milliseconds per request by kind of process, and the requests per second."""
    options = {"data_dir": directory, "max_in_flight": WINDOW, "progress": False, **agents(base_url)}
    batchray.run(requests(200), **options)  # warm: lanes started, code imported
    cpu, started = TreeCpu(), time.monotonic()
    job = batchray.run(requests(n), **options)
    spent, wall_s = cpu.spent(), time.monotonic() - started
    assert job.counts["succeeded"] == n, job.counts
    return {kind: seconds / n * 1e3 for kind, seconds in spent.items()}, n / wall_s


if __name__ == "__main__":
    if len(sys.argv) == 4:
        loop = {"openai": _bare_openai, "aiohttp": bare_aiohttp}[sys.argv[1]]
        asyncio.run(loop(sys.argv[2], 50))  # warm
        start = _cpu()
        asyncio.run(loop(sys.argv[2], int(sys.argv[3])))
        print((_cpu() - start) / int(sys.argv[3]) * 1e3)
    else:
        main()
