"""A client of OpenAI's Responses API, streamed, without state on the server.

Each call sends the whole conversation; reasoning comes encrypted and goes back as it came.
Source: OpenAI's API reference, "Create a model response", and its guides on reasoning and conversation state; the names
and optional fields as in its Python SDK 3.57.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from batchray.errors import InvalidResponseError, ModelAPIError
from batchray.models.arguments import object_to_send
from batchray.models.base import ModelCall, ModelReply, with_settings
from batchray.models.client import HttpClient, TransportSettings, report_wasted_usage
from batchray.models.conversation import used_ids
from batchray.models.partial_reply import complete_calls
from batchray.models.refused_fields import RefusedFields
from batchray.models.responses_reply import PartialResponse
from batchray.models.responses_request import request_body
from batchray.models.routing import OPENAI_URL
from batchray.models.tool_call_ids import new_tool_call_id
from batchray.schema import ToolCall

logger = logging.getLogger(__name__)

_PATH = "/responses"
# Reasoning of another organisation, model or server cannot be decrypted.
_NOT_DECRYPTED = re.compile("encrypted.content.*(could not be|not supported)", re.IGNORECASE)


class ResponsesClient(HttpClient):
    """Calls OpenAI's Responses API, or a server with it; one per provider and event loop, shared by all requests.

    `base_url` is the part before `/responses`.  `name` is the provider's name in errors and logs; `headers` are sent
    with each request.  `ids` makes ids for tool calls that arrive without a usable one.
    Raises ConfigError for an address or a key that HTTP cannot carry.
    """

    def __init__(
        self,
        base_url: str = OPENAI_URL,
        api_key: str | None = None,
        *,
        name: str = "openai",
        headers: Mapping[str, str] | None = None,
        ids: Callable[[], str] = new_tool_call_id,
        **settings: Unpack[TransportSettings],
    ) -> None:
        super().__init__(name, base_url, api_key, "bearer", {}, headers, settings)
        self._ids = ids
        self._refused = RefusedFields(name)

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the model's complete reply, retrying transient failures.

        Fields that the model refuses are left out, see `RefusedFields`, and so is reasoning that it cannot decrypt.
        Raises ModelAPIError, InvalidResponseError or DeadlineExceededError.
        """
        call = with_settings(call)
        try:
            return await self._ask(call, keeps_reasoning=True)
        except ModelAPIError as error:
            if error.type != "bad_request" or not _NOT_DECRYPTED.search(error.message):
                raise
            logger.warning("%s; asking again without the reasoning of earlier steps", error.message)
        return await self._ask(call, keeps_reasoning=False)

    async def _ask(self, call: ModelCall, *, keeps_reasoning: bool) -> ModelReply:
        body = request_body(call, keeps_reasoning=keeps_reasoning)
        answer = await self._refused.send(call, body, lambda sent: self._post(_PATH, sent, PartialResponse, call))
        try:
            return self._reply(call, answer, body.get("max_output_tokens"))
        except InvalidResponseError:
            report_wasted_usage(answer, call)
            raise

    def _reply(self, call: ModelCall, answer: PartialResponse, limit: Any) -> ModelReply:
        calls: Sequence[ToolCall] = ()
        if partial_calls := answer.calls():
            is_cut, used = answer.finish_reason == "length", used_ids(call.messages)
            ids = call.ids(self._ids)
            calls = complete_calls(partial_calls, self._transport.name, is_cut=is_cut, used=used, ids=ids)
        return ModelReply(
            content=answer.parts(),
            tool_calls=calls,
            finish_reason=answer.finish_reason,
            usage=answer.usage(),
            first_token_ns=answer.first_token_ns,
            max_tokens=limit if isinstance(limit, int) else None,
            items=_with_calls(answer.items(), calls),
        )


def _with_calls(items: Sequence[dict[str, Any]], calls: Sequence[ToolCall]) -> Sequence[dict[str, Any]]:
    """Return the items with their calls as they are answered and can be read; nothing if a call was dropped."""
    left = list(calls)
    if sum(item.get("type") == "function_call" for item in items) != len(left):
        return ()
    return [_with_call(item, left.pop(0)) if item.get("type") == "function_call" else item for item in items]


def _with_call(item: dict[str, Any], call: ToolCall) -> dict[str, Any]:
    return {**item, "call_id": call.id, "arguments": object_to_send(call.arguments)}
