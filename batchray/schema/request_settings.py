"""Settings of the model for one request, in the spelling of OpenAI's chat completions.

Source: OpenAI's API reference, "Create chat completion"; the fields from `top_k` on are those of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchray.schema.base import Integer, WireModel

LOST: Mapping[str, frozenset[str]] = {
    "anthropic": frozenset(
        {
            *("seed", "presence_penalty", "frequency_penalty", "logit_bias", "verbosity", "prompt_cache_key"),
            *("safety_identifier", "service_tier", "min_p", "repetition_penalty", "chat_template_kwargs"),
        }
    ),
    "responses": frozenset({"seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias"}),
}
"""The settings that a protocol has no counterpart for, by protocol."""


class RequestSettings(WireModel):
    """Settings of the model for one request; those that are given win over the agent's.  The provider checks them."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: Integer | None = None
    stop: str | list[str] | None = None
    seed: Integer | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    top_k: Integer | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not null."""
        return self.model_dump(exclude_none=True)
