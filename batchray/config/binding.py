"""Joins agents with their providers and keys, and writes the snapshot of them that a job keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from batchray.config.access import OPENAI_URL, Access, access_of, restored_provider, stored_provider
from batchray.config.agents import Agent, AgentsFile, Provider, Tool, agent_to_dict
from batchray.config.documents import Document, read_mapping
from batchray.config.variables import expand_file
from batchray.errors import ConfigError
from batchray.schema.validation_text import first_problem, problem_path

DEFAULT_CACHE_MAX_BYTES = 5 * 1024**3
"""About a million replies of a page of text, which few notebooks need, and small for a home directory."""


@dataclass(frozen=True, eq=False)
class BoundAgent:
    """An agent with everything that a worker needs to run it.

    `key` and `access` are the provider's, with values of the environment.  Workers get them inside pickled bytes;
    neither a repr nor a snapshot shows them.
    `import_paths` are the directories with its Python code, `cache_dir` that with the replies of its `cache`,
    which keeps to `cache_max_bytes`.
    """

    agent: Agent
    provider: Provider | None
    key: SecretStr | None = None
    import_paths: tuple[str, ...] = ()
    access: Access | None = None
    cache_dir: str | None = None
    cache_max_bytes: int = DEFAULT_CACHE_MAX_BYTES


@dataclass(frozen=True)
class AgentSet:
    """The agents that a job may use, by id, and the providers and tools that further agents may use."""

    agents: Mapping[str, BoundAgent] = field(default_factory=dict)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    tools: tuple[str | Tool, ...] = ()
    import_paths: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Agent]:
        """Yield the agents, without their providers."""
        return (bound.agent for bound in self.agents.values())

    def bind(self, agent: Agent, environment: Mapping[str, str] | None = None) -> BoundAgent:
        """Return an agent bound to a provider of this set or a built-in one.  Raises ConfigError."""
        return bind_agents([agent], self.providers, environment, self.import_paths).agents[agent.id]

    def only(self, agent_ids: Set[str]) -> AgentSet:
        """Return the set with these of its agents."""
        return replace(self, agents={name: bound for name, bound in self.agents.items() if name in agent_ids})

    def snapshot(self, agent_ids: Set[str] | None = None) -> dict[str, Any]:
        """Return the agents, or those in `agent_ids`, as JSON-compatible data, with names instead of keys and code.

        A callable that cannot be imported by name becomes null, and so does a secret that is written out in a file; a
        resume has to pass them again.
        """
        return {
            agent_id: {
                "agent": agent_to_dict(bound.agent),
                "provider": stored_provider(bound.provider) if bound.provider else None,
                "import_paths": list(bound.import_paths),
            }
            for agent_id, bound in self.agents.items()
            if agent_ids is None or agent_id in agent_ids
        }

    @classmethod
    def from_snapshot(
        cls,
        snapshot: Mapping[str, Any],
        replaced: AgentSet | None = None,
        environment: Mapping[str, str] | None = None,
        providers: Mapping[str, Provider] | None = None,
    ) -> AgentSet:
        """Rebuild a set; agents of `replaced` win.  Secrets that were not stored come from `providers` of their names.

        Raises ConfigError if a callable or a secret is missing.
        """
        environment = os.environ if environment is None else environment
        agents = dict(replaced.agents) if replaced else {}
        known = providers if providers is not None else replaced.providers if replaced else {}
        for agent_id, kept in snapshot.items():
            if agent_id not in agents:
                agents[agent_id] = _bound_again(agent_id, kept, environment, known)
        return replace(replaced or cls(), agents=agents)


def builtin_providers(environment: Mapping[str, str]) -> dict[str, Provider]:
    """Return the providers that need no file.  Raises ConfigError for an invalid address in the environment."""
    openai_url = environment.get("OPENAI_BASE_URL") or OPENAI_URL
    anthropic_url = environment.get("ANTHROPIC_BASE_URL") or None
    if anthropic_url:  # other tools that read this variable expect the version in it
        anthropic_url = anthropic_url.rstrip("/").removesuffix("/v1")
    return {
        "offline": Provider(protocol="offline"),
        "openai": _builtin("OPENAI", protocol="openai", base_url=openai_url),
        "anthropic": _builtin("ANTHROPIC", protocol="anthropic", base_url=anthropic_url),
    }


def _builtin(prefix: str, **fields: Any) -> Provider:
    try:
        return Provider.model_validate({**fields, "api_key_env": f"{prefix}_API_KEY"})
    except ValidationError as error:
        raise ConfigError(first_problem(error, Provider), f"{prefix}_BASE_URL") from None


def bind_agents(
    agents: Sequence[Agent],
    providers: Mapping[str, Provider] | None = None,
    environment: Mapping[str, str] | None = None,
    import_paths: Sequence[str] = (),
    locations: Sequence[str] = (),
) -> AgentSet:
    """Join agents and providers.  `locations` say where each agent was read, for error messages.

    Raises ConfigError for a duplicate id, an unknown or unusable provider, or a key that is not in the environment.
    """
    environment = os.environ if environment is None else environment
    known = {**builtin_providers(environment), **(providers or {})}
    bound: dict[str, BoundAgent] = {}
    accesses: dict[str, Access] = {}
    for position, agent in enumerate(agents):
        location = locations[position] if locations else f"agents[{position}]"
        if agent.id in bound:
            raise ConfigError(f"duplicate agent id {agent.id!r}", location)
        provider = _provider_of(agent, known, location) if agent.provider_name else None
        key = _key_of(agent, provider, environment, location)
        access = _access_of(agent, provider, environment, location, accesses)
        bound[agent.id] = BoundAgent(
            agent, provider, key, tuple(import_paths), access, *_cache_of(agent, environment, location)
        )
    return AgentSet(bound, known, import_paths=tuple(import_paths))


def load_agents(
    files: Sequence[str | Path] | str | Path,
    environment: Mapping[str, str] | None = None,
    *,
    needs_agents: bool = True,
) -> AgentSet:
    """Read agents and providers from YAML or JSON files; a provider in one file can be used in all of them.

    Python code named in a file is searched for in the file's directory, then in the working directory, then in
    `sys.path`.  Raises ConfigError with the file, the line and the reason; also if there are no agents, unless
    `needs_agents` is False.
    """
    providers: dict[str, Provider] = {}
    tools: list[str | Tool] = []
    agents: list[Agent] = []
    locations: list[str] = []
    paths: list[str] = []
    named = [files] if isinstance(files, str | Path) else files
    for file in map(Path, named):
        document, content = _read(file, os.environ if environment is None else environment)
        providers.update(content.providers)
        tools.extend(content.tools)
        agents.extend(content.agents)
        locations.extend(document.location(("agents", i)) for i in range(len(content.agents)))
        paths.append(str(file.resolve().parent))
    if needs_agents and not agents:
        raise ConfigError("no agents in it", ", ".join(map(str, named)) or "agents")
    bound = bind_agents(agents, providers, environment, list(dict.fromkeys([*paths, str(Path.cwd())])), locations)
    return replace(bound, tools=tuple(dict.fromkeys(tools)))


def _read(file: Path, environment: Mapping[str, str]) -> tuple[Document, AgentsFile]:
    """Return an agents file with the values of variables; a relative `ca_file` in it is relative to the file."""
    document = read_mapping(file, "with the keys providers and agents")
    data = expand_file(document, environment)
    providers = data.get("providers")
    for provider in providers.values() if isinstance(providers, dict) else ():
        if isinstance(provider, dict) and isinstance(provider.get("ca_file"), str):
            provider["ca_file"] = str(file.resolve().parent / Path(provider["ca_file"]).expanduser())
    try:
        return document, AgentsFile.model_validate(data)
    except ValidationError as error:
        location = document.location(problem_path(error))
        raise ConfigError(first_problem(error, AgentsFile), location) from None


def _bound_again(
    agent_id: str, kept: Mapping[str, Any], environment: Mapping[str, str], known: Mapping[str, Provider]
) -> BoundAgent:
    location = "the job's snapshot"
    if None in (kept["agent"].get("run", ""), *kept["agent"].get("tools", ())):
        raise ConfigError(f"agent {agent_id!r} is a Python function that cannot be found by name; pass it in agents=")
    agent = Agent.model_validate(kept["agent"])
    name = agent.provider_name or ""
    provider = restored_provider(name, kept["provider"], known) if kept["provider"] else None
    key = _key_of(agent, provider, environment, location)
    access = _access_of(agent, provider, environment, location, {})
    cache = _cache_of(agent, environment, location)
    return BoundAgent(agent, provider, key, tuple(kept["import_paths"]), access, *cache)


def _access_of(
    agent: Agent,
    provider: Provider | None,
    environment: Mapping[str, str],
    location: str,
    known: dict[str, Access],
) -> Access | None:
    """Return how to reach the agent's provider, from `known` or added to it."""
    name = agent.provider_name or ""
    if provider is None or provider.protocol == "offline":
        return None
    if name not in known:
        try:
            known[name] = access_of(name, provider, environment)
        except ConfigError as error:
            raise ConfigError(f"agent {agent.id!r}: {error.reason}", location) from None
    return known[name]


def _cache_of(agent: Agent, environment: Mapping[str, str], location: str) -> tuple[str | None, int]:
    """Return where the agent's replies are kept, and the most bytes of them.

    They are in `BATCHRAY_CACHE_DIR`, or `batchray` in the user's cache directory.
    """
    if not agent.cache:
        return None, DEFAULT_CACHE_MAX_BYTES
    max_bytes = environment.get("BATCHRAY_CACHE_MAX_BYTES") or str(DEFAULT_CACHE_MAX_BYTES)
    if not (max_bytes.isascii() and max_bytes.isdigit() and len(max_bytes) <= 18):
        reason = f"BATCHRAY_CACHE_MAX_BYTES is a number of bytes, such as {DEFAULT_CACHE_MAX_BYTES}"
        raise ConfigError(f"agent {agent.id!r}: {reason}, not {max_bytes[:100]!r}", location)
    if given := environment.get("BATCHRAY_CACHE_DIR"):
        return str(Path(given).expanduser().resolve()), int(max_bytes)
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(base).expanduser() / "batchray"), int(max_bytes)


def _key_of(agent: Agent, provider: Provider | None, environment: Mapping[str, str], location: str) -> SecretStr | None:
    if provider is None or provider.api_key_env is None:
        return None
    key = environment.get(provider.api_key_env)
    if not key:
        raise ConfigError(
            f"agent {agent.id!r}: provider {agent.provider_name!r} needs its key "
            f"in the environment variable {provider.api_key_env}",
            location,
        )
    return SecretStr(key)


def _provider_of(agent: Agent, known: Mapping[str, Provider], location: str) -> Provider:
    name = agent.provider_name or ""
    provider = known.get(name)
    if provider is None:
        raise ConfigError(f"agent {agent.id!r}: unknown provider {name!r}; known: {', '.join(sorted(known))}", location)
    if provider.protocol == "offline" and agent.model_name not in ("scripted", "rules"):
        raise ConfigError(
            f"agent {agent.id!r}: no offline model {agent.model_name!r}; there are offline/rules and offline/scripted",
            location,
        )
    if agent.protocol is not None and provider.protocol not in ("openai", "responses"):
        reason = f"protocol {agent.protocol} cannot be used with its provider, which has protocol {provider.protocol}"
        raise ConfigError(f"agent {agent.id!r}: {reason}", location)
    return provider
