"""OpenAI's Responses protocol of the loopback provider, with the checks that its API makes on conversations."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from tests.provider_chat import CREATED, chat_error, unsupported
from tests.provider_replies import Ending, Reply, split_words, text_of, whole

Item = dict[str, Any]

# Fields of chat completions that the API refuses by name.
_UNKNOWN = (
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "n",
    "reasoning_effort",
    "response_format",
    "seed",
    "stop",
)
_DONE = b"data: [DONE]\n\n"


class ResponsesReply(Reply):  # more than 20 methods: one for each kind of event
    """OpenAI's Responses.

    Further directives: `failed:CODE` (response.failed), `onlyend` (the items come only in response.completed),
    `emptyend` (they come only before it), `interleaved` (reasoning before each call), `omitted` (no summary),
    `search` (the API searched the web by itself), `refuse:TEXT`, `future` (events and items of unknown types),
    `unencrypted` (the model cannot encrypt its reasoning).
    """

    def _render(self) -> tuple[Sequence[bytes], Ending]:
        self._numbers = itertools.count()
        self._is_streamed = bool(self._request.get("stream")) and "json" not in self._asked
        return super()._render()

    def _refusal(self) -> bytes | None:
        problem = _problem(self._request) or unsupported(self._request, self._asked)
        if "unencrypted" in self._asked and "reasoning.encrypted_content" in self._request.get("include", ()):
            problem = "Encrypted content is not supported with this model."
        return whole(400, chat_error(problem, None)) if problem else super()._refusal()

    def _error(self, status: int, message: str, code: str | None) -> Item:
        return chat_error(message, code)

    def _error_event(self, code: str) -> bytes:
        return self._event("error", code=code, message=f"broke off with {code}", param=None)

    def _too_long(self) -> Item:
        return chat_error("Your input exceeds the context window of this model.", "context_length_exceeded")

    def _broken_event(self) -> bytes:
        return b'event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "del\n\n'

    def _events(self) -> list[bytes]:
        start = self._response([], "in_progress")
        events = [self._event("response.created", response=start), self._event("response.in_progress", response=start)]
        if "future" in self._asked:
            events.append(self._event("response.dreaming.delta", delta={"of": "sheep"}))
        if "onlyend" not in self._asked:
            events += [event for index, item in enumerate(self._items()) for event in self._item_events(index, item)]
        return events

    def _last_events(self) -> list[bytes]:
        if code := self._get("failed"):
            error = {"code": code, "message": f"failed with {code}"}
            failed = {**self._response([], "failed"), "error": error, "usage": self._usage()}
            return [self._event("response.failed", response=failed), _DONE]
        status, _ = self._ending()
        kind = status if status in ("completed", "incomplete") else "completed"
        return [self._event(f"response.{kind}", response=self._ended(self._items())), _DONE]

    def _empty_events(self) -> list[bytes]:
        start = self._event("response.created", response=self._response([], "in_progress"))
        return [start, self._event("response.completed", response=self._ended([])), _DONE]

    def _whole_answer(self) -> Item:
        return self._ended([] if "nochoices" in self._asked else self._items())

    def _results(self) -> list[str]:
        items = [] if isinstance(self._request["input"], str) else self._request["input"]
        newest = itertools.takewhile(lambda item: _type(item) == "function_call_output", reversed(items))
        return [text_of(item["output"]) for item in newest][::-1]

    def _turns(self) -> list[Item]:
        return turns(self._request["input"])

    def _ended(self, items: list[Item]) -> Item:
        status, reason = self._ending()
        details = {"reason": reason} if reason else None
        output = [] if "emptyend" in self._asked and self._is_streamed else items
        return {**self._response(output, status), "incomplete_details": details, "usage": self._usage()}

    def _ending(self) -> tuple[str, str | None]:
        finish = self._get("finish", "stop")
        if finish in ("length", "content_filter", "max_messages"):
            return "incomplete", "max_output_tokens" if finish == "length" else finish
        return ("completed", None) if finish in ("stop", "tool_calls") else (finish, None)

    def _items(self) -> list[Item]:
        """The items of the whole output."""
        tools, n = self._tools(), len(self._turns())
        is_cut = self._get("finish") == "length"
        output = [*self._thought(f"rs_{n}_0"), *self._searched()]
        for i, (call_id, name, arguments) in enumerate(tools):
            if i and "interleaved" in self._asked:
                output += self._thought(f"rs_{n}_{i}")
            status = "incomplete" if is_cut and i == len(tools) - 1 else "completed"
            call = {"id": f"fc_{n}_{i}", "type": "function_call", "status": status}
            output.append({**call, "call_id": call_id, "name": name, "arguments": arguments})
        if not tools:
            output.append(self._message(f"msg_{n}"))
        return output + ([{"id": "dr_1", "type": "dream", "of": "sheep"}] if "future" in self._asked else [])

    def _message(self, id: str) -> Item:
        part: Item = {"type": "output_text", "text": "".join(self._said()), "annotations": [], "logprobs": []}
        if "refuse" in self._asked:
            part = {"type": "refusal", "refusal": self._get("refuse")}
        message = {"id": id, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        return {**message, "phase": "final_answer"}

    def _thought(self, id: str) -> Iterator[Item]:
        if text := self._get("reasoning"):
            summary = [] if "omitted" in self._asked else [{"type": "summary_text", "text": text}]
            yield {"id": id, "type": "reasoning", "summary": summary, **self._encrypted(id, summary)}

    def _encrypted(self, id: str, summary: list[Item]) -> Item:
        if "reasoning.encrypted_content" not in self._request.get("include", ()):
            return {}
        return {"encrypted_content": encrypted(id, summary)}

    def _searched(self) -> Iterator[Item]:
        if "search" in self._asked and not self._has_results():
            action = {"type": "search", "query": "a", "queries": ["a"], "sources": []}
            yield {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": action}

    def _item_events(self, index: int, item: Item) -> Iterator[bytes]:
        growing = {"message": self._text_events, "function_call": self._call_events, "reasoning": self._summary_events}
        started = {**item, **{name: empty for name, empty in _STARTS.items() if name in item}}
        yield self._event("response.output_item.added", output_index=index, item=started)
        if item["type"] in growing:
            yield from growing[item["type"]](item, {"item_id": item["id"], "output_index": index})
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _text_events(self, item: Item, place: Item) -> Iterator[bytes]:
        part = item["content"][0]
        place = {**place, "content_index": 0}
        kind, field = ("output_text", "text") if part["type"] == "output_text" else ("refusal", "refusal")
        logprobs: Item = {"logprobs": []} if kind == "output_text" else {}
        yield self._event("response.content_part.added", **place, part={**part, field: ""})
        for word in split_words(part[field]):
            yield self._event(f"response.{kind}.delta", **place, delta=word, **logprobs)
        yield self._event(f"response.{kind}.done", **place, **{field: part[field]}, **logprobs)
        yield self._event("response.content_part.done", **place, part=part)

    def _call_events(self, item: Item, place: Item) -> Iterator[bytes]:
        arguments = item["arguments"]
        for start in range(0, len(arguments), 5):
            piece = arguments[start : start + 5]
            yield self._event("response.function_call_arguments.delta", **place, delta=piece)
        done = {"name": item["name"], "arguments": arguments}
        yield self._event("response.function_call_arguments.done", **place, **done)

    def _summary_events(self, item: Item, place: Item) -> Iterator[bytes]:
        for index, part in enumerate(item["summary"]):
            at = {**place, "summary_index": index}
            yield self._event("response.reasoning_summary_part.added", **at, part={**part, "text": ""})
            for word in split_words(part["text"]):
                yield self._event("response.reasoning_summary_text.delta", **at, delta=word)
            yield self._event("response.reasoning_summary_text.done", **at, text=part["text"])
            yield self._event("response.reasoning_summary_part.done", **at, part=part)

    def _usage(self) -> Item:
        n_reasoning = len(split_words(self._get("reasoning")))
        n_completion = n_reasoning + len(self._said())
        return {
            "input_tokens": self._n_prompt,
            "input_tokens_details": {"cached_tokens": int(self._get("cached", "0")), "cache_write_tokens": 0},
            "output_tokens": n_completion,
            "output_tokens_details": {"reasoning_tokens": n_reasoning},
            "total_tokens": self._n_prompt + n_completion,
        }

    def _response(self, output: list[Item], status: str) -> Item:
        asked = self._request
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.get("instructions"),
            "model": asked["model"],
            "output": output,
            "parallel_tool_calls": True,
            "reasoning": {"effort": None, "summary": None, **(asked.get("reasoning") or {})},
            "store": asked.get("store", True),
            "text": {"format": {"type": "text"}, **(asked.get("text") or {})},
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": asked.get("tools", []),
            "usage": None,
        }

    def _event(self, kind: str, **content: Any) -> bytes:
        data = orjson.dumps({"type": kind, "sequence_number": next(self._numbers), **content})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


# The fields of an item that its events complete.
_STARTS: Item = {"status": "in_progress", "content": [], "arguments": "", "summary": []}


def encrypted(id: str, summary: list[Item]) -> str:
    """The encrypted content of a reasoning item; it fits no other item."""
    return f"gAAAA{hashlib.sha256(orjson.dumps([id, *(part['text'] for part in summary)])).hexdigest()[:16]}"


def turns(given: str | list[Item]) -> list[Item]:
    """The input as messages with roles: the items of one reply are one message of the assistant."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    found: list[Item] = []
    for item in given:
        role = item.get("role") or ("tool" if _type(item) == "function_call_output" else "assistant")
        if role != "user" and found and found[-1]["role"] == role:
            continue
        found.append({"role": role, "content": item.get("content") or ""})
    return found


def _type(item: Item) -> str:
    return str(item.get("type", "message"))


def _problem(request: Item) -> str | None:
    """What OpenAI's API refuses of a request, in words close to its own."""
    if unknown := next((name for name in _UNKNOWN if name in request), None):
        return f"Unknown parameter: '{unknown}'."
    if wrapped := next((i for i, tool in enumerate(request.get("tools") or ()) if "function" in tool), None):
        return f"Missing required parameter: 'tools[{wrapped}].name'."
    items = request["input"]
    return None if isinstance(items, str) else _problem_of_calls(items) or _problem_of_reasoning(items)


def _problem_of_calls(items: list[Item]) -> str | None:
    asked = [item["call_id"] for item in items if _type(item) == "function_call"]
    answered = [item["call_id"] for item in items if _type(item) == "function_call_output"]
    if missing := next((each for each in asked if each not in answered), None):
        return f"No tool output found for function call {missing}."
    if unasked := next((each for each in answered if each not in asked), None):
        return f"No tool call found for function call output with call_id {unasked}."
    return "Duplicate item found." if len(set(asked)) < len(asked) else None


def _problem_of_reasoning(items: list[Item]) -> str | None:
    for item, following in itertools.zip_longest(items, items[1:]):
        if _type(item) != "reasoning":
            continue
        if following is None or following.get("role") == "user" or _type(following) == "function_call_output":
            return f"Item '{item['id']}' of type 'reasoning' was provided without its required following item."
        if not item.get("encrypted_content"):
            return f"Item with id '{item['id']}' not found. Items are not persisted when `store` is set to false."
        if item["encrypted_content"] != encrypted(item["id"], item["summary"]):
            return f"The encrypted content for item {item['id']} could not be verified."
    return None
