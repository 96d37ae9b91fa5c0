"""Lines of OpenAI's and Anthropic's batches as requests to agents.

Source: OpenAI's API reference, "The request input object" of Batch, and Anthropic's, "Create a Message Batch".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from typing import Any

from batchray.batch.custom_ids import CustomIds
from batchray.batch.formats.chat_messages import (
    anthropic_message,
    asks_for_something,
    openai_message,
    optional_list,
    optional_object,
    responses_messages,
    unknown_keys,
)
from batchray.batch.rules import KnownAgent
from batchray.errors import BatchFormatError, UnknownAgentError
from batchray.schema.request_settings import LOST, RequestSettings

_SETTINGS = frozenset(RequestSettings.model_fields)
# Fields that ask for something that every request here has anyway, or that has no meaning in a batch.
_WITHOUT_MEANING = frozenset({"model", "messages", "input", "tools", "metadata", "n"})
_TOOL = frozenset({"type", "name", "description", "parameters", "input_schema"})
_URLS = ("/v1/chat/completions", "/v1/responses")


def provider_batch(entry: Any, agents: Mapping[str, KnownAgent], agent: str | None, unused: set[str]) -> Entries | None:
    """Return the converter for a batch whose first entry this is; None if the entry is of no other API.

    `agent` answers all requests, if it is given.  The converter adds the fields that have no effect to `unused`.
    """
    if not isinstance(entry, Mapping) or "agent_id" in entry:
        return None
    if "body" in entry and ("url" in entry or "method" in entry):
        return OpenAIEntries(agents, agent, unused)
    return AnthropicEntries(agents, agent, unused) if "params" in entry else None


class Entries(ABC):
    """Converts the entries of a batch of another API to requests, one after another."""

    what: str
    keys: Set[str]

    def __init__(self, agents: Mapping[str, KnownAgent], agent: str | None, unused: set[str]) -> None:
        self._agents, self._agent, self._unused = agents, agent, unused
        self._custom_ids = CustomIds()

    def request(self, entry: Any) -> dict[str, Any]:
        """Return an entry as a request.  Raises BatchFormatError with the path of what cannot be had here.

        Both APIs want a `custom_id` of their own for each request.
        """
        if not isinstance(entry, dict):
            raise BatchFormatError(f"{self.what} is a JSON object, not {type(entry).__name__}")
        if unknown := sorted(entry.keys() - self.keys):
            raise BatchFormatError(f"unknown key; {self.what} has {', '.join(sorted(self.keys))}", path=unknown[0][:60])
        custom_id = entry.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise BatchFormatError(f"{self.what} has a text of its own as custom_id", path="custom_id")
        if self._custom_ids.add(custom_id):
            raise BatchFormatError(f"{custom_id[:60]!r} is the custom_id of an earlier request too", path="custom_id")
        return {"custom_id": custom_id, **self.converted(entry)}

    @abstractmethod
    def converted(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a request, besides its custom_id."""

    def agent_of(self, model: Any) -> str:
        """Return the agent that is asked.  Raises UnknownAgentError if no agent, or more than one, has this model."""
        if self._agent is not None:
            return self._agent
        if not isinstance(model, str) or not model:
            raise BatchFormatError("names the agent, or its model; or name it with --agent ID (agent=)", path="model")
        if model in self._agents:
            return model
        having = [name for name, each in self._agents.items() if each.has_model(model)]
        if len(having) == 1:
            return having[0]
        found = f"agents {', '.join(sorted(having)[:5])} have" if having else "no agent has the id or"
        known = "" if having else f"; agents: {', '.join(sorted(self._agents)[:5])}"
        raise UnknownAgentError(f"{found} the model {model[:60]!r}{known}; name one with --agent ID (agent=)")

    def settings(self, agent_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings among fields; the names of others, and of those that get lost, become unused ones."""
        kept = {name: value for name, value in given.items() if name in _SETTINGS and value is not None}
        lost = LOST.get(self._agents[agent_id].protocol or "", frozenset())
        self._unused |= lost & kept.keys()
        self._unused |= {name for name in given.keys() - _SETTINGS if asks_for_something(given[name])}
        return {"settings": kept} if kept else {}

    def tools(self, body: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Return the tools in the body of an entry, whose calls wait for its author."""
        given = optional_list(body, "tools", path)
        tools = [_client_tool(tool, f"{path}.tools[{i}]") for i, tool in enumerate(given)]
        functions = [tool.get("function") or tool for tool in given]
        self._unused |= {f"tools.{name}" for each in functions for name in each.keys() - _TOOL if each[name]}
        return {"client_tools": tools} if tools else {}


class OpenAIEntries(Entries):
    """Lines of OpenAI's Batch API, for chat completions and Responses."""

    what = "a line of an OpenAI batch"
    keys = frozenset({"custom_id", "method", "url", "body"})

    def converted(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a request, besides its custom_id."""
        if entry.get("method", "POST") != "POST":
            raise BatchFormatError(f"is POST, not {str(entry['method'])[:20]!r}", path="method")
        if (url := entry.get("url")) not in _URLS:
            raise BatchFormatError(f"{str(url)[:60]!r} is not one of {', '.join(_URLS)}", path="url")
        if not isinstance(body := entry.get("body"), dict):
            raise BatchFormatError("is not an object", path="body")
        return self.body_request(body, is_responses=url == _URLS[1])

    def body_request(self, body: Mapping[str, Any], *, is_responses: bool = False) -> dict[str, Any]:
        """Return the request that the body of a call asks for."""
        agent_id = self.agent_of(body.get("model"))
        if body.get("n") not in (None, 1):
            raise BatchFormatError(f"is {body['n']!r}, and an agent gives one answer; repeat the line", path="body.n")
        rest = {name: value for name, value in body.items() if name not in _WITHOUT_MEANING}
        messages = self._responses_messages(rest, body) if is_responses else self._chat_messages(body)
        self._unused |= unknown_keys(body.get("input") if is_responses else body.get("messages"))
        limit = rest.pop("max_completion_tokens", None) or rest.pop("max_output_tokens", None)
        return {
            "agent_id": agent_id,
            "messages": messages,
            **self.tools(body, "body"),
            **({"metadata": body["metadata"]} if body.get("metadata") else {}),
            **self.settings(agent_id, {**rest, **({"max_tokens": limit} if limit is not None else {})}),
        }

    def _chat_messages(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not isinstance(messages := body.get("messages"), list) or not messages:
            raise BatchFormatError("is not a list of messages", path="body.messages")
        return [openai_message(message, f"body.messages[{i}]") for i, message in enumerate(messages)]

    def _responses_messages(self, rest: dict[str, Any], body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the messages of a body of Responses; put its settings into chat completions' spelling."""
        instructions = rest.pop("instructions", None)
        system = [{"role": "system", "content": instructions}] if instructions else []
        text, reasoning = (optional_object(body, name, "body") for name in ("text", "reasoning"))
        rest.pop("text", None)
        rest.pop("reasoning", None)
        if form := optional_object(text, "format", "body.text"):
            inner = {name: value for name, value in form.items() if name != "type"}
            kind = form.get("type")
            rest["response_format"] = {"type": kind, "json_schema": inner} if kind == "json_schema" else form
        if verbosity := text.get("verbosity"):
            rest["verbosity"] = verbosity
        if effort := reasoning.get("effort"):
            rest["reasoning_effort"] = effort
        return [*system, *responses_messages(body.get("input"), "body.input")]


class AnthropicEntries(Entries):
    """Requests of Anthropic's Message Batches API."""

    what = "a request of an Anthropic batch"
    keys = frozenset({"custom_id", "params"})

    def converted(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a request, besides its custom_id."""
        if not isinstance(params := entry.get("params"), dict):
            raise BatchFormatError("is not an object", path="params")
        agent_id = self.agent_of(params.get("model"))
        if not isinstance(messages := params.get("messages"), list) or not messages:
            raise BatchFormatError("is not a list of messages", path="params.messages")
        rest = {name: value for name, value in params.items() if name not in (*_WITHOUT_MEANING, "system")}
        system = _system_of(params.get("system"))
        self._unused |= unknown_keys(messages)
        given = [anthropic_message(message, f"params.messages[{i}]") for i, message in enumerate(messages)]
        return {
            "agent_id": agent_id,
            "messages": [*system, *given],
            **self.tools(params, "params"),
            **_thinking(rest),
            **self.settings(agent_id, _chat_settings(rest, params.get("metadata"))),
        }


def _system_of(system: Any) -> list[dict[str, Any]]:
    if not system:
        return []
    return [anthropic_message({"role": "system", "content": system}, "params.system")]


def _thinking(rest: dict[str, Any]) -> dict[str, Any]:
    """Take the switch of the reasoning out of Anthropic's fields."""
    kind = optional_object(rest, "thinking", "params").get("type")
    rest.pop("thinking", None)
    return {} if kind is None else {"enable_thinking": "false" if kind == "disabled" else "true"}


def _chat_settings(rest: dict[str, Any], metadata: Any) -> dict[str, Any]:
    """Return Anthropic's settings in chat completions' spelling."""
    if (stop := rest.pop("stop_sequences", None)) is not None:
        rest["stop"] = stop
    if isinstance(metadata, dict) and metadata.get("user_id") is not None:
        rest["user"] = metadata["user_id"]
    config = optional_object(rest, "output_config", "params")
    rest.pop("output_config", None)
    if form := optional_object(config, "format", "params.output_config"):
        if "schema" not in form:
            raise BatchFormatError("is missing", path="params.output_config.format.schema")
        rest["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form["schema"]}}
    if config.get("effort") is not None:
        rest["reasoning_effort"] = config["effort"]
    choice = rest.pop("tool_choice", None)
    if isinstance(choice, dict):
        words = {"auto": "auto", "any": "required", "none": "none"}
        named = {"type": "function", "function": {"name": choice.get("name")}}
        rest["tool_choice"] = words.get(str(choice.get("type")), named)
        if choice.get("disable_parallel_tool_use"):
            rest["parallel_tool_calls"] = False
    return rest


def _client_tool(tool: Any, path: str) -> dict[str, Any]:
    """Return a tool of the line's author, whose calls wait for him."""
    if not isinstance(tool, dict):
        raise BatchFormatError("is not an object", path=path)
    if tool.get("type", "function") not in ("function", "custom") or ("name" not in tool and "function" not in tool):
        raise BatchFormatError(
            f"{str(tool.get('type'))[:40]!r} is a tool of the provider; give it to the agent", path=path
        )
    given = optional_object(tool, "function", path) or tool
    parameters = given.get("parameters", given.get("input_schema"))
    return {"name": given.get("name"), "description": given.get("description"), "parameters": parameters}


ENTRIES: Mapping[str | None, type[Entries]] = {"openai": OpenAIEntries, "anthropic": AnthropicEntries}
"""The converters by the name of their format."""
