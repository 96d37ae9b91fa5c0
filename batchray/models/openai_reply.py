"""Assembles a reply of OpenAI's chat completions API, whole or streamed.

Source: OpenAI's API reference, "The chat completion chunk object"; `reasoning_content` and `reasoning` as vLLM,
DeepSeek and OpenRouter send them, content as parts as Mistral sends it, usage in the choice as Moonshot does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from batchray.models.arguments import joined_surrogates
from batchray.models.base import ModelCall, ModelReply, reply_parts
from batchray.models.endings import CHAT_ENDS, FinishReason, check_not_empty, finish_reason, truncated
from batchray.models.http import HttpTransport
from batchray.models.partial_reply import JsonReply, complete_calls, string
from batchray.models.plain_deltas import PlainDeltas
from batchray.models.provider_errors import TransientError, error_in
from batchray.models.reply_extras import gathered, is_wanted_back, reply_item
from batchray.models.tool_call_deltas import ToolCallDeltas
from batchray.models.usage_counts import mapping, merged_counts, token_count
from batchray.schema import ToolCall, Usage

_REASONING_PARTS = frozenset({"thinking", "reasoning", "reasoning_text"})
_REASONING_FIELDS = frozenset({"reasoning_content", "reasoning"})
# Where a part, or a reasoning object, may hold its text; a value may be a list of such objects.
_TEXT_KEYS = ("text", "content", "reasoning", "reasoning_content", "thinking", "summary", "refusal")
_MAX_DEPTH = 8


class PartialCompletion(JsonReply):
    """A reply that is still arriving.  See `PartialReply`."""

    __slots__ = (
        "_calls",
        "_extras",
        "_finish_reason",
        "_has_choice",
        "_plain",
        "_reasoning",
        "_reasoning_key",
        "_text",
        "_usage",
        "_word",
    )

    what: ClassVar[str] = "a chat completion"

    def __init__(self, transport: HttpTransport) -> None:
        super().__init__(transport)
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._reasoning_key: str | None = None  # the field in which it comes
        self._extras: dict[str, Any] = {}
        self._calls = ToolCallDeltas()
        self._plain = PlainDeltas()
        self._usage: Mapping[str, Any] = {}
        self._has_choice = False
        self._word: str | None = None  # the provider's finish_reason
        self._finish_reason: FinishReason = "stop"

    def check(self) -> None:
        """Raise TransientError or InvalidResponseError unless the reply is complete and says something."""
        name = self._transport.name
        if self._word is None:
            if not self.is_done:
                raise truncated()
            if not self._has_choice:
                raise TransientError("no_choices", "the answer has no choices")
            self._word = "stop"  # some servers never give a reason, but say that they are done
        self._finish_reason = finish_reason(CHAT_ENDS, self._word, name)
        check_not_empty(
            self._finish_reason,
            name,
            has_text=any(map(str.strip, self._text)),
            has_calls=bool(self._calls.calls),
            has_reasoning=bool(self._reasoning_text()),
        )

    def reply(self, call: ModelCall, ids: Callable[[], str]) -> ModelReply:
        """Return the complete reply.  Raises InvalidResponseError."""
        # Joined first: a pair of surrogates may be split between two deltas.
        text, reasoning = joined_surrogates("".join(self._text)), joined_surrogates(self._reasoning_text())
        tool_calls = self._tool_calls(ids) if self._calls.calls else ()
        extras = {call.id: call.extra for call in self._calls.calls if call.extra}
        return ModelReply(
            content=reply_parts(text, reasoning),
            tool_calls=tool_calls,
            items=reply_item(self._extras, self._reasoning_key if reasoning else None, extras),
            finish_reason=self._finish_reason,
            usage=self.usage(),
            first_token_ns=self.first_token_ns,
            max_tokens=_max_tokens(call.body),
        )

    def usage(self) -> Usage:
        """Return the tokens reported so far; counts that cannot be read are 0."""
        return _usage(self._usage)

    @property
    def is_learning(self) -> bool:
        """Whether `take_plain` does not know the stream's ordinary events yet."""
        return not self._plain.field and self._plain.may_learn

    def take_plain(self, chunk: bytes) -> bytes:
        """Process the ordinary events at the beginning of a chunk of the stream, and return the rest."""
        text, rest = self._plain.take(chunk)
        if text:
            (self._text if self._plain.field == "content" else self._reasoning).append(text)
        return rest

    def _learn(self, content: Any, data: bytes) -> None:
        """Learn what ordinary events look like from one that was processed: a text, and nothing else of a reply."""
        choices = content.get("choices") if self._plain.may_learn else None
        if not choices or len(choices) > 1 or content.get("usage"):
            return
        choice = choices[0]
        if choice.get("index") or choice.get("finish_reason") or "error" in choice:
            return
        parts = [each for each in (choice.get("delta") or {}).items() if each[1] and each[0] != "role"]
        if len(parts) == 1 and parts[0][0] in ("content", self._reasoning_key) and isinstance(parts[0][1], str):
            self._plain.learn(data, *parts[0])

    def _take(self, content: Any, name: bytes) -> None:
        if name == b"error" or content.get("error"):
            raise self._transport.error_in_reply(content.get("error") or content)
        if choices := content.get("choices"):
            choice = choices[0]
            if not choice.get("index"):
                self._has_choice = True
                delta = choice.get("delta")
                if delta:
                    for field, value in delta.items():  # hot path: a delta per token
                        if not value:
                            continue
                        if field == "content":
                            if value.__class__ is str:
                                self._text.append(value)
                            else:
                                self._apply_parts(value)
                        elif field == "tool_calls":
                            self._calls.add(value)
                        elif field == self._reasoning_key:
                            self._reasoning.append(value if value.__class__ is str else _words(value))
                        elif field == "role" or not self._apply_other(field, value):
                            continue
                        if self.first_token_ns is None:
                            self._mark_first_token()
                if (reason := choice.get("finish_reason")) or not delta or "error" in choice:
                    self._end(choice, reason)
        elif (error := error_in(content)) is not None:
            raise self._transport.error_in_reply(error)
        if usage := content.get("usage"):
            self._usage = merged_counts(self._usage, usage)

    def _take_whole(self, content: Any) -> None:
        if not content.get("error") and (choices := content.get("choices")):
            choices[0]["message"]  # a KeyError names what is missing
        self._take(content, b"")
        if self._has_choice:
            self._word = self._word or "stop"

    def _reasoning_text(self) -> str:
        """Return the reasoning; that of OpenRouter's details if it comes in no field of its own."""
        return "".join(self._reasoning) or _words(self._extras.get("reasoning_details"))

    def _end(self, choice: Mapping[str, Any], reason: Any) -> None:
        """Process a choice without a delta, or with a finish_reason: the last one, a whole message, or an error."""
        if message := choice.get("message"):
            self._take({"choices": [{"delta": message}]}, b"")
        if reason:
            self._word = string(reason.get("type") if isinstance(reason, dict) else reason)  # an object: SGLang
        self._usage = merged_counts(self._usage, choice.get("usage"))
        if error := choice.get("error"):
            raise self._transport.error_in_reply(error)

    def _apply_other(self, name: str, value: Any) -> bool:
        """Process a field that few deltas have; return whether it is a part of the reply."""
        if name in _REASONING_FIELDS:
            if self._reasoning_key is not None:
                return False  # some servers send it in both fields
            self._reasoning_key = name
            self._reasoning.append(value if value.__class__ is str else _words(value))
        elif name == "refusal":
            self._text.append(string(value))
        elif name == "function_call":
            self._calls.add([{"function": value}])
        elif is_wanted_back(name):
            self._extras[name] = gathered(self._extras.get(name), value)
        else:
            return False
        return True

    def _apply_parts(self, content: Any) -> None:
        """Process content that is one part or a list of parts.  Raises TypeError for anything else."""
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, dict) and (part.get("type") in _REASONING_PARTS or "thinking" in part):
                self._reasoning.append(_words(part))
            else:
                self._text.append(_words(part) if isinstance(part, dict) else string(part))

    def _tool_calls(self, ids: Callable[[], str]) -> list[ToolCall]:
        is_cut = self._finish_reason in ("length", "context_length")
        return complete_calls(self._calls.calls, self._transport.name, is_cut=is_cut, used=set(), ids=ids)


def _words(value: Any, depth: int = 0) -> str:
    """Return the text in a part: a string, an object that holds one, or a list of these; other values have none."""
    if isinstance(value, str):
        return value
    if depth < _MAX_DEPTH and isinstance(value, list):
        return "".join(_words(each, depth + 1) for each in value)
    if depth < _MAX_DEPTH and isinstance(value, dict):
        return next((text for key in _TEXT_KEYS if (text := _words(value.get(key), depth + 1))), "")
    return ""


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    """Return the limit of the reply's tokens that a call asks for."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit if isinstance(limit, int) else None


def _usage(given: Mapping[str, Any]) -> Usage:
    prompt, completion = token_count(given.get("prompt_tokens")), token_count(given.get("completion_tokens"))
    of_prompt = mapping(given.get("prompt_tokens_details"))
    of_completion = mapping(given.get("completion_tokens_details"))
    cached = of_prompt.get("cached_tokens") or given.get("prompt_cache_hit_tokens") or given.get("cached_tokens")
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=max(token_count(given.get("total_tokens")), prompt + completion),
        cached_input_tokens=token_count(cached),
        cache_write_tokens=token_count(of_prompt.get("cache_write_tokens")),
        reasoning_tokens=token_count(of_completion.get("reasoning_tokens")),
    )
