"""Rules for the agents and keys that the requests of a batch name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from batchray.errors import BatchFormatError, UnknownAgentError
from batchray.schema import AgentRequest
from batchray.schema.keys import did_you_mean, unused_keys
from batchray.schema.validation_text import path_text


class _Foreign(NamedTuple):
    """A request of another API: its name, where its messages are, and what takes it over HTTP or as a file."""

    name: str
    messages: str
    takers: str


# Keys that no request here has, and the format that they belong to.
_FOREIGN = {
    frozenset({"body", "url"}): _Foreign(
        "an OpenAI batch line", "body.messages", "OpenAI's /v1/batches and `batchray run FILE` take files of such lines"
    ),
    frozenset({"params"}): _Foreign(
        "an Anthropic batch entry",
        "params.messages",
        "`batchray run FILE` takes a file of Anthropic's, and OpenAI's /v1/batches one of OpenAI's",
    ),
}


class KnownAgent(NamedTuple):
    """An agent that requests may name: its model as "provider/model", its provider's protocol, and its own name."""

    model: str | None = None
    protocol: str | None = None
    name: str | None = None

    def has_model(self, name: str) -> bool:
        """Whether this is its model, with the provider or without, or its own name."""
        return name == self.name or (self.model is not None and name in (self.model, self.model.partition("/")[2]))


class RequestRules:
    """Checks agents and keys.

    A key that is unknown, or that its model refuses, is always refused.  A field of Letta's API that has no effect is
    refused too, unless `accepts_unused`, as Letta's routes do: then its name is collected in `unused`.
    `convert` makes a request of an entry of another API's batch; None for requests of our own.
    """

    convert: Callable[[Any], dict[str, Any]] | None = None

    def __init__(self, agents: Iterable[str], *, accepts_unused: bool = False) -> None:
        self.agents = frozenset(agents)
        self.unused = set[str]()
        self._accepts_unused = accepts_unused

    def check_agent(self, agent_id: str) -> None:
        """Raise UnknownAgentError for an agent that does not exist."""
        if agent_id not in self.agents:
            names = ", ".join(sorted(self.agents)[:5]) + (", ..." if len(self.agents) > 5 else "")
            raise UnknownAgentError(f"unknown agent {agent_id!r}; known: {names}")

    def check_keys(self, request: Mapping[str, Any], model: type[BaseModel] = AgentRequest) -> None:
        """Raise BatchFormatError for a key that is unknown or refused, or that has no effect and is not accepted."""
        for path, level, is_known, refusal in unused_keys(model, request):
            if not is_known:
                raise self._unknown(path, level, request)
            if refusal is not None:
                raise BatchFormatError(refusal, path=path_text(path))
            if not self._accepts_unused:
                raise BatchFormatError("has no effect here; leave it out", path=path_text(path))
            self.unused.add(path_text([part for part in path if isinstance(part, str)]))

    def _unknown(
        self, path: tuple[int | str, ...], level: type[BaseModel], request: Mapping[str, Any]
    ) -> BatchFormatError:
        for keys, foreign in _FOREIGN.items():
            if keys <= request.keys() and "agent_id" not in request:
                # Files may be of another API as a whole; a route of Letta's takes Letta's requests only.
                if self._accepts_unused:
                    return BatchFormatError(f"{foreign.name}; this route takes Letta's requests, {foreign.takers}")
                remedy = f"write its {foreign.messages} as messages, and name an agent of the agents file in agent_id"
                return BatchFormatError(f"{foreign.name}; {remedy}")
        given: Collection[str] = request.keys() if len(path) == 1 else ()
        reason = f"unknown key{did_you_mean(str(path[-1]), level, given)}"
        return BatchFormatError(reason, path=path_text(path))
