"""The Python API: run, submit, resume, retry, attach."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from batchray.agents.build import check_agents_build
from batchray.batch.parse import read_callback_url
from batchray.config import Agent, AgentSet, Provider, Settings, bind_agents, load_agents, load_settings
from batchray.errors import ConfigError
from batchray.jobs.control import reopen_job
from batchray.jobs.create import Requests, collect, create_job
from batchray.jobs.handle import Job
from batchray.jobs.runtime import Runtime
from batchray.schema.validation_text import first_problem

AgentsLike = Sequence[Agent | Mapping[str, Any]] | str | Path | AgentSet
"""Agents, or the path of an agents file."""

M = TypeVar("M", Agent, Provider)


def run(requests: Requests, agents: AgentsLike, *, progress: bool = True, **options: Any) -> Job:
    """Run a batch, show how it goes, and return the ended job.

    Takes what `submit` takes.  Works inside a running event loop, as in a notebook.  An interrupt (Ctrl-C) stops what
    runs, keeps every outcome, and is raised again; `resume` goes on from there.
    """
    return _watch(submit(requests, agents, **options), progress)


async def arun(requests: Requests, agents: AgentsLike, **options: Any) -> Job:
    """Run a batch from async code and return the ended job.  A cancelled wait interrupts the job."""
    if isinstance(requests, AsyncIterable):
        requests = await collect(requests, _settings(options).data_dir, _agent_set(agents, options.get("providers")))
    job = await asyncio.to_thread(submit, requests, agents, **options)
    return await _awaited(job)


def submit(
    requests: Requests,
    agents: AgentsLike,
    *,
    providers: Mapping[str, Provider | Mapping[str, Any]] | None = None,
    callback_url: str | None = None,
    **settings: Any,
) -> Job:
    """Accept a batch and return its job, which runs in the background of this process.

    `requests` is a path (JSON Lines, or a whole JSON body), an open binary file, an iterable or async iterable of
    requests, or a Ray Dataset.  `agents` are agents or the path of an agents file; `settings` are fields of `Settings`.
    When this returns the job and all its items are on disk.

    Raises BatchFormatError or ConfigError, and has run nothing, when any of it cannot be used.
    """
    chosen = _settings(settings)
    bound = _agent_set(agents, providers)
    _check_travel(bound, chosen)
    if callback_url is not None:
        callback_url = read_callback_url(callback_url)
    session = _session()
    store = session.open_store(chosen)
    try:
        if any(agent.agent.placement == "process" for agent in bound.agents.values()):
            session.executor(chosen).check(bound)  # what no node can run is refused before the batch is accepted
        job_id = session.wait(create_job(store, requests, bound, callback_url))
        return session.start(job_id, bound, store, chosen)
    except BaseException:
        session.release_store(store)
        raise


def resume(job_id: str, agents: AgentsLike | None = None, *, progress: bool = True, **options: Any) -> Job:
    """Go on with an unfinished job and return it ended: items that have an outcome are not run again.

    The job's agents come from its snapshot in the store; `agents` replaces those of the same ids.
    Raises UnknownJobError, and ConfigError for an agent whose function or key cannot be found.
    """
    return _watch(submit_resume(job_id, agents, **options), progress)


def submit_resume(job_id: str, agents: AgentsLike | None = None, *, is_retry: bool = False, **options: Any) -> Job:
    """Go on with an unfinished job in the background of this process; otherwise as `resume`."""
    providers = options.pop("providers", None)
    settings = _settings(options)
    if settings.url is None and not settings.database.exists():
        raise ConfigError(f"no batchray data in {settings.data_dir}; give the --data-dir that the job was run with")
    session = _session()
    store = session.open_store(settings)
    try:
        record = session.wait(store.call(store.job, job_id))
        if record.is_ended and not is_retry:
            session.release_store(store)
            return Job(job_id, settings.data_dir, url=settings.url)
        given = _agent_set(agents, providers) if agents is not None else None
        snapshot = session.wait(store.call(store.agent_snapshot, job_id))
        bound = AgentSet.from_snapshot(snapshot, given)
        check_agents_build(bound)
        _check_travel(bound, settings)
        if is_retry:
            session.wait(store.call(reopen_job, store, job_id))
        return session.start(job_id, bound, store, settings)
    except BaseException:
        session.release_store(store)
        raise


def submit_retry(job_id: str, agents: AgentsLike | None = None, **options: Any) -> Job:
    """Run the items of an ended job again that did not succeed, in the background of this process.

    Their failed outcomes are forgotten; those that succeeded stay as they are.
    """
    settings = _settings(options)
    job = attach(job_id, settings.data_dir, settings.url)
    record = job.record()
    if record.counts["succeeded"] == record.total:
        return job
    if not record.is_ended:
        raise ConfigError(f"job {job_id} has not ended; `batchray resume` goes on with it")
    return submit_resume(job_id, agents, is_retry=True, **options)


def attach(job_id: str, data_dir: str | Path = ".batchray", database_url: str | None = None) -> Job:
    """Return the handle of a job of this data directory, or this database, whoever runs it.  Raises UnknownJobError."""
    job = Job(job_id, Path(data_dir), url=database_url)
    job.record()
    return job


def shutdown() -> None:
    """Interrupt this process's jobs and end its lanes.  Happens by itself when Python exits."""
    if _session.cache_info().currsize:
        _session().close()
        _session.cache_clear()


@functools.cache
def _session() -> Runtime:
    # The one piece of state a process has: lanes are kept warm from job to job, and end with the process.
    return Runtime()


def _settings(options: Mapping[str, Any]) -> Settings:
    return load_settings(
        **{name: value for name, value in options.items() if name not in ("providers", "callback_url")}
    )


def _agent_set(agents: AgentsLike, providers: Mapping[str, Provider | Mapping[str, Any]] | None = None) -> AgentSet:
    """Return the agents bound to their providers.  Raises ConfigError for one that cannot be built."""
    if isinstance(agents, AgentSet):
        agent_set = agents
    elif isinstance(agents, str | Path):
        agent_set = load_agents([Path(agents)])
    else:
        parsed = [_validated(Agent, agent, f"agents[{position}]") for position, agent in enumerate(agents)]
        known = {name: _validated(Provider, given, f"providers[{name!r}]") for name, given in (providers or {}).items()}
        agent_set = bind_agents(parsed, known, import_paths=[str(Path.cwd())])
    check_agents_build(agent_set)
    return agent_set


def _validated(model: type[M], given: M | Mapping[str, Any], place: str) -> M:
    if isinstance(given, model):
        return given
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ConfigError(first_problem(error, model), place) from None


def _check_travel(agents: AgentSet, settings: Settings) -> None:
    """Refuse Python functions that cannot be sent to a lane before a batch that needs them is accepted."""
    carried = [bound for bound in agents.agents.values() if any(map(callable, (bound.agent.run, *bound.agent.tools)))]
    if carried and settings.executor == "ray":
        from batchray.executors.ray.lane import pack

        for bound in carried:
            pack(bound)


def _watch(job: Job, is_shown: bool) -> Job:
    from batchray.views.progress_display import show_progress

    try:
        if is_shown:
            show_progress(job)
        job.wait()
    except KeyboardInterrupt:
        job.stop()
        raise
    return job


async def _awaited(job: Job) -> Job:
    try:
        await job.ended()
    except asyncio.CancelledError:
        await asyncio.to_thread(job.stop)
        raise
    return job
