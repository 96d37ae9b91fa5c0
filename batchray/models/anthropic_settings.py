"""Settings of a request in the spelling of Anthropic's Messages API.

Source: Anthropic's API reference, "Create a Message", and its page on OpenAI SDK compatibility.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchray.schema.request_settings import LOST

_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


def anthropic_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in chat completions' spelling as fields of this API, without those that it has not."""
    fields = {name: value for name, value in given.items() if name not in LOST["anthropic"]}
    if (stop := fields.pop("stop", None)) is not None:
        fields["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if (user := fields.pop("user", None)) is not None:
        fields["metadata"] = {"user_id": user}
    if (effort := fields.pop("reasoning_effort", None)) in ("low", "medium", "high"):
        fields["output_config"] = {"effort": effort}
    if (fields.get("response_format") or {}).get("type") == "json_object":
        del fields["response_format"]
    choice, is_parallel = fields.pop("tool_choice", None), fields.pop("parallel_tool_calls", None)
    if (wanted := _tool_choice(choice, is_parallel)) is not None:
        fields["tool_choice"] = wanted
    return fields


def _tool_choice(choice: Any, is_parallel: bool | None) -> dict[str, Any] | None:
    if choice is None and is_parallel is not False:
        return None
    if isinstance(choice, dict):
        wanted = {"type": "tool", "name": choice["function"]["name"]} if "function" in choice else dict(choice)
    else:
        wanted = {"type": _CHOICES.get(choice, "auto")}
    return {**wanted, "disable_parallel_tool_use": True} if is_parallel is False else wanted
