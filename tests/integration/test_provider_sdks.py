"""The SDKs of OpenAI and Anthropic read the replies of the tests' own provider, so that it is like the real ones."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from batchray.models.refused_fields import ENCRYPTED
from tests.builders.model_calls import KEY
from tests.provider_server import ProviderServer


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as running:
        yield running


async def test_openais_sdk_reads_the_test_servers_replies(server: ProviderServer) -> None:
    import openai

    async with openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY, max_retries=0) as client:
        ask = client.chat.completions.create
        user: Any = {"role": "user", "content": '[[tool:add {"a": 1}]]'}
        whole = await ask(model="m", messages=[user])
        stream = await ask(model="m", messages=[user], stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        with pytest.raises(openai.RateLimitError, match="slow down"):
            await ask(model="m", messages=[{"role": "user", "content": "[[429:message=slow down]]"}])
    assert whole.choices[0].finish_reason == "tool_calls"
    pieces = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    assert "".join(piece.function.arguments or "" for piece in pieces if piece.function) == '{"a": 1}'
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 5


@pytest.mark.parametrize(
    "text",
    [
        "hi",
        "[[reasoning:let me see]][[say:it is so]]",
        '[[reasoning:hm]][[tool:add {"a": 1}]][[tool:add {"a": 2}]][[interleaved]]',
        "[[search]]",
        "[[refuse:I will not]]",
        "[[finish:length]]",
        "[[failed:server_error]]",
        "[[error:server_error]]",
    ],
)
async def test_openais_sdk_reads_the_test_servers_responses(server: ProviderServer, text: str) -> None:
    import openai

    settings: dict[str, Any] = {"max_retries": 0, "_strict_response_validation": True}
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY, **settings) as client:
        ask: Any = functools.partial(client.responses.create, model="m", input=text, store=False, include=[ENCRYPTED])
        events = [event async for event in await ask(stream=True)]
        whole = None if "error" in text else await ask()
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    if whole is None:
        assert events[-1].type in ("response.failed", "error")
        return
    [ended] = [event.response for event in events if event.type in ("response.completed", "response.incomplete")]
    assert (ended.status, ended.output) == (whole.status, whole.output)
    assert whole.output_text == "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_anthropics_sdk_reads_the_test_servers_replies(server: ProviderServer) -> None:
    import anthropic

    user = {"role": "user", "content": '[[reasoning:let me see]][[redacted:QUJD]][[tool:add {"a": 1}]]'}
    asked: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [user]}
    async with anthropic.AsyncAnthropic(base_url=server.root_url, api_key=KEY, max_retries=0) as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        with pytest.raises(anthropic.RateLimitError, match="slow down"):
            await client.messages.create(
                **{**asked, "messages": [{"role": "user", "content": "[[429:message=slow down]]"}]}
            )
    assert [block.type for block in whole.content] == ["thinking", "redacted_thinking", "tool_use"]
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert (streamed.stop_reason, streamed.usage.output_tokens) == ("tool_use", whole.usage.output_tokens)
