"""Requests crossed with agents: the same question to each agent, several times."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Never

from batchray.batch.formats.options import NO_OPTIONS
from batchray.batch.formats.sources import with_index
from batchray.config import Agent, AgentSet
from batchray.errors import UsageError
from batchray.schema import AgentRequest

REQUEST, REPEAT = "request", "repeat"
"""Keys in the metadata of a crossed request: which request it repeats, and the number of the repeat, from 0."""


class CrossedRequests(Iterable[dict[str, Any]]):
    """Each request for each agent, `repeats` times.  It can be read again, for example by a cell that runs again."""

    def __init__(self, requests: Collection[Any], agent_ids: Sequence[str], repeats: int) -> None:
        self._requests, self._agent_ids, self._repeats = requests, agent_ids, repeats

    def __len__(self) -> int:
        return len(self._requests) * len(self._agent_ids) * self._repeats

    def __repr__(self) -> str:
        shape = f"{len(self._requests):,} requests x {len(self._agent_ids)} agents x {self._repeats} repeats"
        return f"<{shape}: {len(self):,}>"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for position, given in enumerate(self._requests):
            request = _as_mapping(given, position)
            for repeat in range(self._repeats):
                for agent_id in self._agent_ids:
                    yield _crossed(request, position, agent_id, repeat)


def cross(
    requests: Iterable[str | Mapping[str, Any] | AgentRequest] | Any,
    agents: Iterable[Agent | Mapping[str, Any] | str] | AgentSet | Agent | str,
    repeats: int = 1,
    **options: Never,
) -> CrossedRequests:
    """Return each request for each agent, `repeats` times, as the requests of one batch.

    A request is a text, a mapping or an `AgentRequest`; its `agent_id`, if it has one, is replaced.  The requests may
    also be the rows of a table (a pandas, Polars or pyarrow one, a Hugging Face Dataset, or mappings), if `run` is told
    how a row becomes a request: `run(cross(frame, agents), agents, prompt="Answer: {question}")`.

    Agents are agents or their ids, or all of an agents file (`load_agents`).  All answers to one request stand together
    in the batch, so that agents are compared under the same load.  The metadata of each has `request`, the custom_id or
    else the position of the request that it repeats, and `repeat`; its custom_id is `request/agent_id/repeat`.

    Raises UsageError for arguments that cannot be crossed, BatchFormatError when it is read for a request that is none.
    """
    if options:
        raise _unknown_option(next(iter(options)))
    if isinstance(requests, str | Path):
        given = f"{str(requests)[:60]!r}"
        remedy = "read a file first, such as pandas.read_csv(path), and put a single request into a list"
        raise UsageError(f"cross: requests is a list of requests or the rows of a table, not {given}; {remedy}")
    requests = _rows_of(requests)
    if isinstance(requests, bytes | Mapping) or not isinstance(requests, Iterable):
        raise UsageError(f"cross: requests is a list of requests, not a {type(requests).__name__}")
    if isinstance(agents, AgentSet):
        agents = list(agents.agents)
    elif isinstance(agents, str | Agent | Mapping):
        agents = [agents]
    agent_ids = [_agent_id(agent) for agent in agents]
    if twice := next((each for each in agent_ids if agent_ids.count(each) > 1), None):
        raise UsageError(f"cross: agent {twice!r} is given twice; `repeats` asks one agent several times")
    if not agent_ids:
        raise UsageError("cross: there are no agents")
    if not isinstance(repeats, int) or repeats < 1:
        raise UsageError(f"cross: repeats is a whole number from 1, not {repeats!r}")
    return CrossedRequests(requests if isinstance(requests, Collection) else list(requests), agent_ids, repeats)


def _unknown_option(name: str) -> UsageError:
    if name in NO_OPTIONS.__dataclass_fields__:
        call = f"batchray.run(batchray.cross(rows, agents), agents, {name}=...)"
        return UsageError(f"cross: {name} says how a row becomes a request; give it to run: {call}")
    return UsageError(f"cross: unknown argument {name!r}; it takes requests, agents and repeats, and run the others")


def _rows_of(requests: Any) -> Any:
    """Return the rows of a frame or a table as mappings; anything else as it is."""
    if hasattr(requests, "iloc"):  # pandas
        return _frame_rows(requests)
    for to_rows in ("to_dicts", "to_pylist", "take_all"):  # Polars, pyarrow, Ray
        if hasattr(requests, to_rows):
            return getattr(requests, to_rows)()
    return requests


def _frame_rows(frame: Any) -> list[Any]:
    """Return the rows of a DataFrame, or the values of a Series, with None for what is missing."""
    known = frame.astype(object).where(frame.notna(), None)
    return known.tolist() if frame.ndim == 1 else with_index(known).to_dict("records")  # type: ignore[no-any-return]


def _agent_id(agent: Agent | Mapping[str, Any] | str) -> str:
    if isinstance(agent, str):
        return agent
    if isinstance(agent, Mapping):
        agent = Agent(**agent)
    if not isinstance(agent, Agent):
        raise UsageError(f"cross: agents are agents or their ids, not {type(agent).__name__}")
    return agent.id


def _as_mapping(request: Any, position: int) -> Mapping[str, Any]:
    if isinstance(request, str):
        return {"input": request}
    if isinstance(request, AgentRequest):
        return request.model_dump(mode="json", exclude_unset=True)
    if not isinstance(request, Mapping):
        kind = type(request).__name__
        raise UsageError(f"cross: requests[{position}] is a text, a mapping or an AgentRequest, not {kind}")
    return request


def _crossed(request: Mapping[str, Any], position: int, agent_id: str, repeat: int) -> dict[str, Any]:
    metadata = request.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        kind = type(metadata).__name__
        raise UsageError(f"cross: the metadata of requests[{position}] is a mapping, not {kind}; rename the column")
    if taken := {REQUEST, REPEAT} & metadata.keys():
        raise UsageError(f"cross: requests[{position}] has {min(taken)!r} in its metadata, which cross sets; rename it")
    key = str(position if request.get("custom_id") is None else request["custom_id"])
    return {
        **request,
        "agent_id": agent_id,
        "custom_id": f"{key}/{agent_id}/{repeat}",
        "metadata": {**metadata, REQUEST: key, REPEAT: repeat},
    }
