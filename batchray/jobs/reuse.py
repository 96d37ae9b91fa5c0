"""Which outcomes of an earlier job a new one takes over: those of equal requests to equal agents.

An agent is equal if its settings, its provider and its code are.  A stateful agent never is: its outcome depends on the
conversation.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson

from batchray.agents.code_digest import code_digest
from batchray.config import AgentSet
from batchray.errors import ConfigError, UnknownJobError
from batchray.store import JobRecord, NewItem, Store, TakenOver

CODE = "code"
"""The key of the digest of an agent's code in a job's snapshot of its agents."""

# Settings that change neither what is asked nor what counts as an answer.
_INDIFFERENT = ("id", "labels", "cache", "placement", "num_cpus", "num_gpus")


CodeOf = Callable[[str], str | None]
"""Returns the digest of the code of an agent by its id."""


def code_of(agents: AgentSet) -> CodeOf:
    """Return what reads the code of each agent once."""
    return functools.cache(lambda agent_id: code_digest(agents.agents[agent_id]))


def with_code(snapshot: Mapping[str, Any], code: CodeOf) -> dict[str, Any]:
    """Return the snapshot of a job's agents with digests of their code."""
    return {agent_id: {**kept, CODE: code(agent_id)} for agent_id, kept in snapshot.items()}


class Reuse:
    """Finds the outcome of an earlier job for each item of a new one.

    It holds a digest of each request that succeeded: about 250 bytes each.
    """

    def __init__(self, source: JobRecord, agents: Mapping[str, bytes], indexes: Mapping[bytes, int]) -> None:
        self._source, self._agents, self._indexes = source, agents, indexes
        self._pairs: list[tuple[int, int]] = []

    @classmethod
    def of(cls, store: Store, job_id: str, agents: AgentSet, code: CodeOf) -> Reuse:
        """Read the earlier job.  Raises ConfigError if the store does not have it."""
        try:
            source = store.database.run(store.jobs.get, job_id)
        except UnknownJobError as error:
            raise ConfigError(
                f"reuse: {error}; outcomes are taken over within one data directory or database"
            ) from None
        earlier = _agent_digests(store.database.run(store.jobs.agent_snapshot, source.id))
        numbered = _Numbered()
        indexes: dict[bytes, int] = {}
        after = -1
        while page := store.database.run(store.items.succeeded_requests, source, after):
            for each in page:
                if each.agent_id in earlier:
                    indexes[numbered.digest(earlier[each.agent_id], each.request)] = each.index
            after = page[-1].index
        return cls(source, _agent_digests(with_code(agents.snapshot(), code)), indexes)

    def watch(self, items: Iterable[NewItem]) -> Iterator[NewItem]:
        """Yield the items of the new job, and find their outcomes."""
        numbered = _Numbered()
        for index, item in enumerate(items):
            if item.agent_id in self._agents:
                found = self._indexes.get(numbered.digest(self._agents[item.agent_id], item.request))
                if found is not None:
                    self._pairs.append((index, found))
            yield item

    def taken_over(self) -> TakenOver:
        """Return the outcomes for the items so far."""
        return TakenOver(self._source, self._pairs)


class _Numbered:
    """Digests of requests.  Equal requests of one job have different digests: the second takes the second outcome."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}

    def digest(self, agent: bytes, request: bytes) -> bytes:
        content = _content(agent, request)
        count = self._counts.get(content, 0)
        self._counts[content] = count + 1
        return content if count == 0 else _digest(content, count.to_bytes(8, "big"))


def _content(agent: bytes, request: bytes) -> bytes:
    """Return a digest of a request without its names.  Only a function sees those and the metadata."""
    fields = orjson.loads(request)
    is_function = agent[:1] == b"f"
    fields.pop("agent_id", None)
    if not is_function:
        fields.pop("custom_id", None)
        metadata = fields.pop("metadata", None) or {}
        fields["repeat"] = metadata.get("repeat")
    return _digest(agent, orjson.dumps(fields, option=orjson.OPT_SORT_KEYS))


def _agent_digests(snapshot: Mapping[str, Any]) -> dict[str, bytes]:
    """Return a digest of each agent whose outcomes can be taken over; `f` before that of a function."""
    digests = {}
    for agent_id, kept in snapshot.items():
        settings = {name: value for name, value in kept["agent"].items() if name not in _INDIFFERENT}
        code = kept.get(CODE, None if settings.keys() & {"run", "tools"} else "")
        if settings.get("stateful") or code is None:
            continue
        is_function = "run" in settings
        known = {name: value for name, value in settings.items() if name not in ("run", "tools")}
        content = orjson.dumps([known, kept["provider"], code], option=orjson.OPT_SORT_KEYS)
        digests[agent_id] = (b"f" if is_function else b"m") + _digest(content)
    return digests


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()
