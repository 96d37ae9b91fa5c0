"""All faults of a provider at once, in each protocol: every call ends or recovers as documented.

Time is virtual, connections are real.  A seed decides the order; the default run takes one, `-m chaos` nineteen more.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from batchray.errors import RequestError
from batchray.models import ModelClient, RetryPolicy
from batchray.models.anthropic import AnthropicClient
from batchray.models.openai import OpenAIClient
from batchray.models.responses import ResponsesClient
from tests.builders.model_calls import KEY, PATIENT, call
from tests.builders.virtual_time import SteppedTime
from tests.provider_server import ProviderServer

ANSWER = "tok0 tok1 tok2 tok3 tok4 "
CLIENTS: dict[str, Callable[..., ModelClient]] = {
    "openai": lambda server, **given: OpenAIClient(server.base_url, KEY, **given),
    "responses": lambda server, **given: ResponsesClient(server.base_url, KEY, **given),
    "anthropic": lambda server, **given: AnthropicClient(server.root_url, KEY, **given),
}
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, 20))]

RECOVERS = (
    "status:408",
    "status:409",
    "status:429",
    "429:retry-after=7",
    "429:retry-after-ms=300",
    "status:500",
    "html:502",
    "status:503",
    "503:retry-after=3",
    "status:529",
    "reset:start",
    "reset:headers",
    "reset",
    "truncate",
    "error:overloaded_error",
    "error:rate_limit_error",
    "error:api_error",
    "finish:network_error",
    "finish:abort",
    "wrongtype",
)
"""Faults that pass, each for one or two calls."""
ENDS = {
    "badjson": "malformed_stream",
    "garbage": "malformed_response",
    "finish:content_filter": "refusal",
    "finish:sensitive": "refusal",
    "finish:one_of_tomorrow": "unknown_finish_reason",
    "say:  ": "no_content",
    "error:invalid_request_error": "stream_error",
    "toolong": "context_length_exceeded",
    "status:400": "bad_request",
    "status:413": "request_too_large",
    "longline:4300000": "malformed_stream",
}
"""Faults that stay, with the type of the error."""
WHOLE = ("json", "nodone", "crlf", "cached:3", "latency:0.001")
"""Forms of an answer that is whole."""


class Tried(NamedTuple):
    """A server with its clock, and a client of it."""

    server: ProviderServer
    client: ModelClient
    time: SteppedTime

    async def ask_all(self, texts: list[str]) -> dict[str, str]:
        """Make all calls at once; return the text or the error's type of each."""

        async def outcome(text: str) -> str:
            try:
                return (await self.client.ask(call(text))).text
            except RequestError as error:
                return str(getattr(error, "type", error))

        return dict(zip(texts, await self.time.run(asyncio.gather(*map(outcome, texts))), strict=True))


Opened = Callable[..., AbstractAsyncContextManager[Tried]]


@pytest.fixture(params=CLIENTS)
def opened(request: pytest.FixtureRequest) -> Opened:
    """Open a server and a client with the same virtual clock, once for each protocol."""

    @asynccontextmanager
    async def opened(seed: int, **settings: Any) -> AsyncIterator[Tried]:
        time = SteppedTime()
        async with ProviderServer(clock=time.clock, seed=seed, **settings) as server:
            time.is_busy = lambda: server.n_in_flight > 0
            given = {"rng": random.Random(seed), "clock": time.clock, "sleep": time.sleep}
            client = CLIENTS[request.param](server, name="local", timeouts=PATIENT, retry=RetryPolicy(), **given)
            yield Tried(server, client, time)
            await client.close()

    return opened


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_fault_ends_or_recovers_as_documented(opened: Opened, seed: int) -> None:
    passing = [f"{n} [[{fault} x{n}]]" for fault in RECOVERS for n in (1, 2)]
    whole = [f"{i} [[{form}]]" for form in WHOLE for i in range(4)]
    final = {f"[[{fault}]]": type for fault, type in ENDS.items()}
    texts = [*passing, *whole, *final]
    random.Random(seed).shuffle(texts)
    async with opened(seed) as tried:
        outcomes = await tried.ask_all(texts)
    assert {text: outcomes[text] for text in final} == final
    assert {text: outcomes[text] for text in passing + whole} == dict.fromkeys(passing + whole, ANSWER)
    asked = Counter(each.text for each in tried.server.calls)
    assert {text: n for text, n in asked.items() if text in final} == dict.fromkeys(final, 1)
    assert {text: n - 1 for text, n in asked.items() if text in passing} == {text: int(text[0]) for text in passing}


@pytest.mark.parametrize("seed", SEEDS)
async def test_one_call_in_ten_failing_at_random_costs_at_most_a_fifth_more_calls(opened: Opened, seed: int) -> None:
    texts = [f"call {i}" for i in range(200)]
    async with opened(seed, fault_rate=0.1) as tried:
        assert set((await tried.ask_all(texts)).values()) == {ANSWER}
    assert 200 < tried.server.n_calls <= 1.2 * 200


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_call_is_repeated_before_the_wait_that_the_provider_asked_for(opened: Opened, seed: int) -> None:
    rng = random.Random(seed)
    waits_s = {f"call {i}": [rng.choice((0.2, 1, 17, 60)) for _ in range(rng.randint(0, 2))] for i in range(40)}
    texts = {
        " ".join([name, *(f"[[429:retry-after={wait_s} x{n}]]" for n, wait_s in enumerate(waits, 1))]): waits
        for name, waits in waits_s.items()
    }
    async with opened(seed) as tried:
        assert set((await tried.ask_all(list(texts))).values()) == {ANSWER}
    came = defaultdict(list)
    for each in tried.server.calls:
        came[each.text].append(each.at)
    assert {text: len(times) - 1 for text, times in came.items()} == {text: len(waits) for text, waits in texts.items()}
    for text, times in came.items():
        # The first wait of the text counts for the first answer, the second for the next.
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert all(gap >= wait_s for gap, wait_s in zip(gaps, texts[text], strict=True)), (text, gaps)
