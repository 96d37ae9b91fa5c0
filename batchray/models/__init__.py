"""Asking models: the ModelClient protocol and its twins: OpenAI-compatible, Anthropic, offline."""

from __future__ import annotations

from batchray.errors import ConfigError
from batchray.models.base import ModelCall, ModelClient, ModelReply, ToolSpec, said
from batchray.models.offline import OfflineModels, RulesModel, ScriptedModel
from batchray.models.retry import CallTimeouts, Gate, RetryPolicy

__all__ = [
    "CallTimeouts",
    "Gate",
    "ModelCall",
    "ModelClient",
    "ModelReply",
    "OfflineModels",
    "RetryPolicy",
    "RulesModel",
    "ScriptedModel",
    "ToolSpec",
    "make_client",
    "said",
]


def make_client(
    name: str,
    protocol: str,
    base_url: str | None = None,
    api_key: str | None = None,
    *,
    timeouts: CallTimeouts | None = None,
    retry: RetryPolicy | None = None,
) -> ModelClient:
    """Return a client of the provider `name`, for use on one event loop.

    Raises ConfigError for a protocol without a client, or an address or key that cannot be used.
    """
    if protocol == "offline":
        return OfflineModels()
    # The clients are imported here, so that offline runs and `import batchray` load no aiohttp.
    if protocol == "anthropic":
        from batchray.models.anthropic import BASE_URL, AnthropicClient

        return AnthropicClient(base_url or BASE_URL, api_key, name=name, timeouts=timeouts, retry=retry)
    if protocol != "openai":
        raise ConfigError(f"provider {name!r}: there is no client for the protocol {protocol!r}")
    if base_url is None:
        raise ConfigError(f"provider {name!r}: the protocol openai needs a base_url")
    from batchray.models.openai import OpenAIClient

    return OpenAIClient(base_url, api_key, name=name, timeouts=timeouts, retry=retry)
