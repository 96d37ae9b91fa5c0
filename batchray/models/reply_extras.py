"""Fields of a chat completion that its provider wants back: signatures, encrypted or detailed reasoning, extra content.

Sources: Google's pages on thought signatures (`extra_content`), OpenRouter's on preserving reasoning
(`reasoning_details`), LiteLLM's on reasoning (`thinking_blocks`, `provider_specific_fields`), those of DeepSeek,
Moonshot and Zhipu on `reasoning_content`, and reports about servers that refuse it: Groq, Mistral and Cerebras.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from batchray.errors import ModelAPIError
from batchray.models.arguments import with_whole_texts
from batchray.schema import Message, ReasoningContent

logger = logging.getLogger(__name__)

SendReasoning = Literal["auto", "always", "never"]
"""Whether reasoning goes back to the provider.  `auto`: as the host wants it; to unknown ones, with tool calls."""

_Where = Literal["all", "calls", "none"]  # in all replies, in those with tool calls, or in none

_HOSTS: Mapping[str, _Where] = {
    "api.deepseek.com": "all",
    "api.moonshot.ai": "all",
    "api.moonshot.cn": "all",
    "api.z.ai": "all",
    "open.bigmodel.cn": "all",
    "api.cerebras.ai": "none",
    "api.groq.com": "none",
    "api.mistral.ai": "none",
    "api.openai.com": "none",
}
_REFUSED_WITHOUT_CALLS = frozenset({"deepseek-reasoner"})  # it answers 400 to reasoning of replies without tool calls
_REFUSAL = re.compile(
    r"\breasoning(_content)?\b.*(unsupported|not (supported|permitted|allowed)|unexpected|unknown|unrecognized|extra)"
    r"|(unsupported|not permitted|unexpected|unknown|unrecognized|extra|additional) .*\breasoning(_content)?\b",
    re.IGNORECASE,
)
_WANTED = re.compile("^(extra_content|reasoning_details|thinking_blocks|provider_specific_fields)$|signature|encrypted")
_GROWING = frozenset({"text", "summary", "thinking"})  # of a part that is streamed in pieces
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_CALL_FIELDS = frozenset({"index", "id", "type", "function"})
_FUNCTION_FIELDS = frozenset({"name", "arguments"})


class ReasoningBack:
    """Whether and where one provider wants its reasoning back.

    If no setting decides, a refusal of the reasoning ends it.  `provider` is named in the warning.
    """

    def __init__(self, setting: SendReasoning = "auto", base_url: str = "", provider: str = "") -> None:
        self._setting, self._provider = setting, provider
        self._where = _HOSTS.get(urlsplit(base_url).hostname or "", "calls")

    def fields(self, message: Message, model: str) -> dict[str, Any]:
        """Return the fields to add to a reply that goes back, besides those of its tool calls."""
        given = _item(message)
        never = self._setting == "never"
        fields = {name: value for name, value in given.items() if value != "" and not (never and _is_reasoning(name))}
        fields.pop("tool_calls", None)
        key = next((name for name, value in given.items() if value == ""), None)
        if self._setting == "always":
            key = key or "reasoning_content"
        if key and self._is_sent(message, model) and (text := _reasoning_text(message)):
            fields[key] = text
        return fields

    def learn(self, error: ModelAPIError) -> bool:
        """Return whether an error refuses reasoning that was sent; no more is sent after it."""
        is_refusal = error.type == "bad_request" and _REFUSAL.search(error.message) is not None
        if self._setting != "auto" or not is_refusal:
            return False
        if self._where != "none":  # another call may have met it first
            self._where = "none"
            logger.warning("provider %s does not take reasoning back; it is left out", self._provider)
        return True

    def _is_sent(self, message: Message, model: str) -> bool:
        if self._setting != "auto":
            return self._setting == "always"
        if self._where == "all" and model not in _REFUSED_WITHOUT_CALLS:
            return True
        return self._where != "none" and bool(message.tool_calls)


def call_fields(message: Message) -> dict[str, Mapping[str, Any]]:
    """Return the further fields of a reply's tool calls, by the call's id."""
    return {call["id"]: call for call in _item(message).get("tool_calls") or ()}


def reply_item(
    fields: Mapping[str, Any], reasoning_key: str | None, calls: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what to keep of a reply in its message's `provider_items`, or nothing.

    Under `reasoning_key` an empty string stands for the text of the message's reasoning.
    """
    item = {name: _joined(value) for name, value in fields.items()}
    if reasoning_key:
        item[reasoning_key] = ""
    if extra := [{**given, "id": call_id} for call_id, given in calls.items() if given]:
        item["tool_calls"] = extra
    return [with_whole_texts({"role": "assistant", **item})] if item else []


def extras_of_call(piece: Mapping[str, Any], function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a tool call, or a piece of one, that the protocol does not have."""
    extra = {name: value for name, value in piece.items() if name not in _CALL_FIELDS and value not in _EMPTY}
    inner = {name: value for name, value in function.items() if name not in _FUNCTION_FIELDS and value not in _EMPTY}
    return {**extra, "function": inner} if inner else extra


@functools.lru_cache(maxsize=256)
def is_wanted_back(name: str) -> bool:
    """Whether the provider wants a field of this name back, if it has sent one."""
    return _WANTED.search(name) is not None


def gathered(kept: Any, value: Any) -> Any:
    """Return a field after another piece of it.

    A list is only extended, so that many small pieces stay cheap; `reply_item` joins its parts.
    """
    if not isinstance(value, list):
        return grown(kept, value)
    if not isinstance(kept, list):
        return list(value)
    kept.extend(value)
    return kept


def grown(kept: Any, new: Any) -> Any:
    """Return a value after another piece of it: objects are joined, anything else is replaced."""
    if isinstance(kept, dict) and isinstance(new, dict):
        return {**kept, **{name: grown(kept.get(name), value) for name, value in new.items() if value is not None}}
    return new


def _joined(value: Any) -> Any:
    """Return a list of parts with consecutive pieces of a part joined; other values unchanged."""
    if not isinstance(value, list):
        return value
    parts: list[list[Any]] = []
    for piece in value:
        if parts and _continues(parts[-1][0], piece):
            parts[-1].append(piece)
        else:
            parts.append([piece])
    return [pieces[0] if len(pieces) == 1 else _whole(pieces) for pieces in parts]


def _continues(first: Any, piece: Any) -> bool:
    if not isinstance(first, dict) or not isinstance(piece, dict):
        return False
    is_same = first.get("type") == piece.get("type") and first.get("index") == piece.get("index")
    return is_same and not _GROWING.isdisjoint(first.keys() | piece.keys())


def _whole(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = {name: value for piece in pieces for name, value in piece.items() if value is not None}
    texts = {name: "".join(str(piece.get(name) or "") for piece in pieces) for name in _GROWING & whole.keys()}
    return {**whole, **texts}


def _item(message: Message) -> dict[str, Any]:
    """Return the kept fields of a reply; items with a type are those of another protocol."""
    kept = next((item for item in message.provider_items if "type" not in item), {})
    return {name: value for name, value in kept.items() if name != "role"}


def _is_reasoning(name: str) -> bool:
    return name in ("reasoning_details", "thinking_blocks")


def _reasoning_text(message: Message) -> str:
    return "".join(part.reasoning for part in message.content or () if isinstance(part, ReasoningContent))
