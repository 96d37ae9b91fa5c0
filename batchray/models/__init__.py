"""Calls to model providers: one client per protocol (chat completions, Responses, Anthropic, offline).

Owns the protocols' bodies, streaming, retries, and the gate of one provider on one event loop.  Knows nothing of
agents, jobs or the store.  Invariants:

- A reply counts only if it ends in a way that the protocol defines as complete.
- A transient failure is retried here and nowhere else, and never past the call's deadline.
- The usage of a failed attempt is reported through `ModelCall.on_wasted_usage`.
- No key appears in an error, a log or a repr.

This is the hot path: a stream has two lines per token.  Start reading at `base` (the interface), then
`client` and `http` (one call), then `openai` (a protocol).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from batchray.errors import ConfigError
from batchray.models.base import ModelCall, ModelClient, ModelReply, ToolSpec, WrittenMessages, reply_parts
from batchray.models.endings import cut_error
from batchray.models.gate import ProviderGate
from batchray.models.offline import OfflineModels, RulesModel, ScriptedModel
from batchray.models.retry import CallTimeouts, RetryPolicy
from batchray.models.routing import OPENAI_URL

if TYPE_CHECKING:
    from batchray.models.connection import ConnectionOptions
    from batchray.models.reply_extras import SendReasoning

__all__ = [
    "CallTimeouts",
    "ModelCall",
    "ModelClient",
    "ModelReply",
    "OfflineModels",
    "ProviderGate",
    "RetryPolicy",
    "RulesModel",
    "ScriptedModel",
    "ToolSpec",
    "WrittenMessages",
    "cut_error",
    "make_client",
    "reply_parts",
]


def make_client(
    name: str,
    protocol: str,
    base_url: str | None = None,
    api_key: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeouts: CallTimeouts | None = None,
    retry: RetryPolicy | None = None,
    gate: ProviderGate | None = None,
    send_reasoning: SendReasoning = "auto",
    **options: Unpack[ConnectionOptions],
) -> ModelClient:
    """Return a client of the provider `name`, for use on one event loop; `gate` holds its calls back.

    `send_reasoning` belongs to the protocol openai.
    Raises ConfigError for an unknown protocol, or an address or key that HTTP cannot carry.
    """
    if protocol == "offline":
        return OfflineModels()
    settings: dict[str, Any] = {
        "name": name,
        "headers": headers,
        "timeouts": timeouts,
        "retry": retry,
        "gate": gate,
        **options,
    }
    # The clients are imported here, so that offline runs and `import batchray` load no aiohttp.
    if protocol == "anthropic":
        from batchray.models.anthropic import BASE_URL, AnthropicClient

        return AnthropicClient(base_url or BASE_URL, api_key, **settings)
    if protocol == "responses":
        from batchray.models.responses import ResponsesClient

        return ResponsesClient(base_url or OPENAI_URL, api_key, **settings)
    if protocol != "openai":
        raise ConfigError(f"provider {name!r}: there is no client for the protocol {protocol!r}")
    if base_url is None:
        raise ConfigError(f"provider {name!r}: the protocol openai needs a base_url")
    from batchray.models.openai import OpenAIClient

    return OpenAIClient(base_url, api_key, send_reasoning=send_reasoning, **settings)
