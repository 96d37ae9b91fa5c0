"""A client of OpenAI's chat completions API and of compatible servers, streamed.

Source: OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Unpack

from batchray.errors import InvalidResponseError, ModelAPIError
from batchray.models.base import ModelCall, ModelReply, with_settings
from batchray.models.client import HttpClient, TransportSettings, report_wasted_usage
from batchray.models.openai_reply import PartialCompletion
from batchray.models.openai_request import request_body
from batchray.models.refused_fields import RefusedFields
from batchray.models.reply_extras import ReasoningBack, SendReasoning
from batchray.models.thinking import thinking_switch
from batchray.models.tool_call_ids import new_tool_call_id

_PATH = "/chat/completions"


class OpenAIClient(HttpClient):
    """Calls an OpenAI-compatible server; one per provider and event loop, shared by all requests.

    `base_url` is the part before `/chat/completions`.  `name` is the provider's name in errors and logs; `headers`
    are sent with each request.  `ids` makes ids for tool calls that arrive without a usable one.  `send_reasoning`
    says whether reasoning goes back with the conversation.
    Raises ConfigError for an address or a key that HTTP cannot carry.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        name: str = "openai",
        headers: Mapping[str, str] | None = None,
        ids: Callable[[], str] = new_tool_call_id,
        send_reasoning: SendReasoning = "auto",
        **settings: Unpack[TransportSettings],
    ) -> None:
        super().__init__(name, base_url, api_key, "bearer", {}, headers, settings)
        self._ids = ids
        self._reasoning = ReasoningBack(send_reasoning, base_url, name)
        self._switch = thinking_switch(base_url)
        self._refused = RefusedFields(name)

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the model's complete reply, retrying transient failures.

        Fields that the model refuses are left out, see `RefusedFields` and `ReasoningBack`.
        Raises ModelAPIError, InvalidResponseError or DeadlineExceededError.
        """
        call = with_settings(call)
        try:
            answer = await self._send(call)
        except ModelAPIError as error:
            if not any(each.provider_items for each in call.messages) or not self._reasoning.learn(error):
                raise
            answer = await self._send(call)
        try:
            return answer.reply(call, call.ids(self._ids))
        except InvalidResponseError:
            report_wasted_usage(answer, call)
            raise

    async def _send(self, call: ModelCall) -> PartialCompletion:
        body = request_body(call, self._reasoning, self._switch)
        return await self._refused.send(call, body, lambda sent: self._post(_PATH, sent, PartialCompletion, call))
