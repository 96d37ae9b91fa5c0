"""A client of Anthropic's Messages API, streamed.

Source: Anthropic's API reference, "Create a Message", and its pages on streaming, stop reasons, extended thinking and
prompt caching; the names and optional fields as in its Python SDK 2.13.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack
from urllib.parse import quote

from batchray.errors import InvalidResponseError, ModelAPIError
from batchray.models.anthropic_models import KnownModels
from batchray.models.anthropic_reply import PartialMessage
from batchray.models.anthropic_request import Block, request_body
from batchray.models.anthropic_settings import anthropic_settings
from batchray.models.base import ModelCall, ModelReply, with_settings
from batchray.models.client import HttpClient, TransportSettings, report_wasted_usage
from batchray.models.conversation import used_ids
from batchray.models.endings import check_not_empty
from batchray.models.partial_reply import complete_calls
from batchray.schema import TextContent, ToolCall, Usage

BASE_URL = "https://api.anthropic.com"
"""Anthropic's own server."""

_PATH = "/v1/messages"
_VERSION = "2023-06-01"
_MODEL_INFO_S = 2.0  # the longest wait of a call for the facts about its model; it continues without them
_MAX_PAUSES = 16  # far more than a turn takes; the request's deadline is the limit that matters


def new_tool_call_id() -> str:
    """Return a random id of the form that Anthropic uses."""
    return f"toolu_{uuid.uuid4().hex[:24]}"


class AnthropicClient(HttpClient):
    """Calls Anthropic, or a server with its Messages API; one per provider and event loop, shared by all requests.

    `base_url` is the part before `/v1/messages`.  `name` is the provider's name in errors and logs; `headers` are sent
    with each request.  `ids` makes ids for tool calls that arrive without a usable one.
    Raises ConfigError for an address or a key that HTTP cannot carry.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        *,
        name: str = "anthropic",
        headers: Mapping[str, str] | None = None,
        ids: Callable[[], str] = new_tool_call_id,
        **settings: Unpack[TransportSettings],
    ) -> None:
        super().__init__(name, base_url, api_key, "x-api-key", {"anthropic-version": _VERSION}, headers, settings)
        self._ids = ids
        self._models = KnownModels(name, self._model_info)

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the model's complete reply, retrying transient failures.

        Parameters that the model refuses are left out or changed, with a warning.
        Raises ModelAPIError, InvalidResponseError or DeadlineExceededError.
        """
        call = with_settings(call, anthropic_settings)
        while True:
            wait_s = min(_MODEL_INFO_S, call.deadline - self._transport.clock())
            rules = await self._models.rules_for(call.model, call.body, call.thinking, wait_s)
            body = request_body(call, rules)
            try:
                return await self._ask_to_the_end(call, body)
            except ModelAPIError as error:
                if error.type != "bad_request" or not self._models.learn(call.model, rules, error.message, body):
                    raise

    async def close(self) -> None:
        """Close the connections.  Calls in progress and later calls fail."""
        await self._models.close()
        await super().close()

    async def _model_info(self, model: str) -> Any:
        return await self._transport.get_json(f"/v1/models/{quote(model, safe='')}", _MODEL_INFO_S)

    async def _ask_to_the_end(self, call: ModelCall, body: Mapping[str, Any]) -> ModelReply:
        """Return the reply to a body.

        The API pauses a turn when tools of its own take long.  This method then sends the turn's blocks back until the
        turn ends; the reply joins all its parts.
        """
        partials = list[PartialMessage]()
        while len(partials) <= _MAX_PAUSES:
            partial = await self._ask_once(body, call, partials)
            partials.append(partial)
            if partial.stop_reason != "pause_turn":
                return self._checked_reply(call, partials, body["max_tokens"])
            body = {**body, "messages": [*body["messages"], {"role": "assistant", "content": partial.blocks()}]}
        _report_wasted(partials, call)
        raise InvalidResponseError("turn_paused", f"{self._transport.name}: still not done after {_MAX_PAUSES} pauses")

    async def _ask_once(
        self, body: Mapping[str, Any], call: ModelCall, earlier: Sequence[PartialMessage]
    ) -> PartialMessage:
        try:
            return await self._post(_PATH, body, PartialMessage, call)
        except BaseException:
            _report_wasted(earlier, call)
            raise

    def _checked_reply(self, call: ModelCall, partials: Sequence[PartialMessage], max_tokens: Any) -> ModelReply:
        try:
            return self._reply(call, partials, max_tokens if isinstance(max_tokens, int) else None)
        except InvalidResponseError:
            _report_wasted(partials, call)
            raise

    def _reply(self, call: ModelCall, partials: Sequence[PartialMessage], max_tokens: int | None) -> ModelReply:
        finish_reason = partials[-1].finish_reason
        content = [part for partial in partials for part in partial.parts()]
        partial_calls = [each for partial in partials for each in partial.calls()]
        is_after_tools = bool(call.messages) and call.messages[-1].role in ("tool", "approval")
        if finish_reason != "stop" or not is_after_tools:  # only a reply to tool results may be empty
            check_not_empty(
                finish_reason,
                self._transport.name,
                has_text=any(isinstance(part, TextContent) and part.text.strip() for part in content),
                has_calls=bool(partial_calls),
                has_reasoning=bool(content),
            )
        calls: Sequence[ToolCall] = ()
        if partial_calls:
            is_cut, used = finish_reason in ("length", "context_length"), used_ids(call.messages)
            ids = call.ids(self._ids)
            calls = complete_calls(partial_calls, self._transport.name, is_cut=is_cut, used=used, ids=ids)
        usage = sum((partial.usage() for partial in partials), Usage())
        items = _items(partials, calls)
        return ModelReply(content, calls, finish_reason, usage, partials[0].first_token_ns, max_tokens, items)


def _items(partials: Sequence[PartialMessage], calls: Sequence[ToolCall]) -> list[Block]:
    """Return the blocks of a reply with tools of the provider's own, so that they go back as they came."""
    if all(partial.is_representable for partial in partials):
        return []
    blocks = [block for partial in partials for block in partial.blocks()]
    asked = [block for block in blocks if block["type"] == "tool_use"]
    for block, call in zip(asked, calls, strict=False):
        block["id"] = call.id
    return blocks if len(asked) == len(calls) else []


def _report_wasted(partials: Sequence[PartialMessage], call: ModelCall) -> None:
    for partial in partials:
        report_wasted_usage(partial, call)
