"""The Python API: run a batch, resume or retry a job, attach to one.

`run`, `resume` and `retry` watch their job to its end; `arun`, `aresume` and `aretry` do so in async code.  `submit`,
`submit_resume` and `submit_retry` return at once, and the job runs in the background of this process.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from pydantic import SecretStr, ValidationError

from batchray.agents.build import check_agents_build
from batchray.batch.parse import read_callback_url
from batchray.config import Agent, AgentSet, Provider, Settings, bind_agents, load_agents, load_settings
from batchray.errors import ConfigError, StoreLockedError
from batchray.jobs.control import reopen_job
from batchray.jobs.create import Requests, collect, create_job
from batchray.jobs.handle import Job
from batchray.jobs.runtime import Runtime
from batchray.schema.validation_text import first_problem
from batchray.store import Store

AgentsLike = Sequence[Agent | Mapping[str, Any]] | str | Path | AgentSet
"""Agents, or the path of an agents file."""

Providers = Mapping[str, Provider | Mapping[str, Any]]
"""Providers by name."""

M = TypeVar("M", Agent, Provider)


class SettingsOptions(TypedDict, total=False):
    """The fields of `Settings` as keyword arguments.  One that is left out or None has the value of `load_settings`."""

    data_dir: str | Path | None
    database_url: str | SecretStr | None
    allow_network_fs: bool | None
    lease_s: float | None
    max_in_flight: int | None
    lanes: int | None
    executor: Literal["ray", "local"] | None
    ray_address: str | None
    num_cpus: int | None
    max_attempts: int | None
    job_deadline_s: float | None
    deadline_grace_s: float | None
    lane_silence_s: float | None
    min_watched_items: int | None


class ResumeOptions(SettingsOptions, total=False):
    """What `resume` and `retry` take besides the job and its agents."""

    providers: Providers | None


class SubmitOptions(ResumeOptions, total=False):
    """What `run` and `submit` take besides the requests and their agents."""

    callback_url: str | None


def run(requests: Requests, agents: AgentsLike, *, progress: bool = True, **options: Unpack[SubmitOptions]) -> Job:
    """Run a batch, show its progress, and return the ended job.

    Takes the arguments of `submit`.  Works inside a running event loop, as in a notebook.  An interrupt (Ctrl-C) stops
    the job, keeps every outcome, and is raised again; `resume` continues the job.
    """
    return _watch(submit(requests, agents, **options), progress)


async def arun(
    requests: Requests, agents: AgentsLike, *, progress: bool = False, **options: Unpack[SubmitOptions]
) -> Job:
    """Run a batch from async code and return the ended job.  Cancelling the call interrupts the job, as in `run`."""
    if isinstance(requests, AsyncIterable):
        own: dict[str, Any] = {
            name: value for name, value in options.items() if name not in ("providers", "callback_url")
        }
        requests = await collect(requests, load_settings(**own).data_dir, _agent_set(agents, options.get("providers")))
    job = await asyncio.to_thread(submit, requests, agents, **options)
    return await _watch_async(job, progress)


def submit(
    requests: Requests,
    agents: AgentsLike,
    *,
    providers: Providers | None = None,
    callback_url: str | None = None,
    **settings: Unpack[SettingsOptions],
) -> Job:
    """Accept a batch and return its job, which runs in the background of this process.

    `requests` is a path (JSON Lines, or a whole JSON body), an open binary file, an iterable or async iterable of
    requests, or a Ray Dataset.  `agents` are agents or the path of an agents file, `settings` are fields of `Settings`.
    The job and all its items are on disk when this returns.

    Raises BatchFormatError or ConfigError if any of the input cannot be used; nothing has run then.
    """
    chosen = load_settings(**settings)
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
        return _started(job_id, bound, store, chosen)
    except BaseException:
        session.release_store(store)
        raise


def resume(
    job_id: str, agents: AgentsLike | None = None, *, progress: bool = True, **options: Unpack[ResumeOptions]
) -> Job:
    """Continue an unfinished job and return it ended.  Items that have an outcome are not run again.

    The job's agents come from its snapshot in the store; `agents` replaces those with the same ids.
    Raises UnknownJobError, and ConfigError if an agent's function or key cannot be found.
    """
    return _watch(submit_resume(job_id, agents, **options), progress)


async def aresume(
    job_id: str, agents: AgentsLike | None = None, *, progress: bool = False, **options: Unpack[ResumeOptions]
) -> Job:
    """Continue an unfinished job from async code; otherwise as `resume`."""
    return await _watch_async(await asyncio.to_thread(submit_resume, job_id, agents, **options), progress)


def submit_resume(job_id: str, agents: AgentsLike | None = None, **options: Unpack[ResumeOptions]) -> Job:
    """Continue an unfinished job in the background of this process; otherwise as `resume`."""
    return _start_again(job_id, agents, is_retry=False, **options)


def retry(
    job_id: str, agents: AgentsLike | None = None, *, progress: bool = True, **options: Unpack[ResumeOptions]
) -> Job:
    """Run the items of an ended job that did not succeed again, and return the job ended.

    Their failed outcomes are deleted; those that succeeded stay as they are.  If all have succeeded nothing runs.
    Raises UnknownJobError, and ConfigError if the job has not ended or an agent's function or key cannot be found.
    """
    return _watch(submit_retry(job_id, agents, **options), progress)


async def aretry(
    job_id: str, agents: AgentsLike | None = None, *, progress: bool = False, **options: Unpack[ResumeOptions]
) -> Job:
    """Run the failed items of an ended job again from async code; otherwise as `retry`."""
    return await _watch_async(await asyncio.to_thread(submit_retry, job_id, agents, **options), progress)


def submit_retry(job_id: str, agents: AgentsLike | None = None, **options: Unpack[ResumeOptions]) -> Job:
    """Run the failed items of an ended job again in the background of this process; otherwise as `retry`."""
    return _start_again(job_id, agents, is_retry=True, **options)


def _start_again(
    job_id: str,
    agents: AgentsLike | None,
    *,
    is_retry: bool,
    providers: Providers | None = None,
    **settings: Unpack[SettingsOptions],
) -> Job:
    """Start a job of the store in this process.  A job that has nothing to run is returned as it is."""
    chosen = load_settings(**settings)
    if chosen.url is None and not chosen.database.exists():
        raise ConfigError(f"no batchray data in {chosen.data_dir}; give the --data-dir that the job was run with")
    session = _session()
    try:
        store = session.open_store(chosen)  # for writing: it brings a database of an older version up to this one
    except StoreLockedError:
        if is_retry and (done := _with_nothing_to_retry(job_id, chosen)) is not None:
            return done
        raise
    try:
        record = session.wait(store.database.call(store.jobs.get, job_id))
        if record.counts["succeeded"] == record.total if is_retry else record.is_ended:
            session.release_store(store)
            return Job(job_id, chosen.data_dir, url=chosen.url)
        if is_retry and not record.is_ended:
            raise _not_ended(job_id)
        given = _agent_set(agents, providers) if agents is not None else None
        snapshot = session.wait(store.database.call(store.jobs.agent_snapshot, job_id))
        bound = AgentSet.from_snapshot(snapshot, given)
        check_agents_build(bound)
        _check_travel(bound, chosen)
        if is_retry:
            session.wait(store.database.call(reopen_job, store, job_id))
        return _started(job_id, bound, store, chosen)
    except BaseException:
        session.release_store(store)
        raise


def _with_nothing_to_retry(job_id: str, settings: Settings) -> Job | None:
    """Return a job of a store that another process writes to, if all of its items have succeeded; None if not.

    Raises ConfigError if it has not ended.
    """
    job = Job(job_id, settings.data_dir, url=settings.url)
    record = job.record()
    if record.counts["succeeded"] == record.total:
        return job
    if not record.is_ended:
        raise _not_ended(job_id)
    return None


def _not_ended(job_id: str) -> ConfigError:
    return ConfigError(f"job {job_id} has not ended; `batchray resume` continues it")


def _started(job_id: str, agents: AgentSet, store: Store, settings: Settings) -> Job:
    local_run = _session().start(job_id, agents, store, settings)
    return Job(job_id, store.data_dir, url=settings.url, local_run=local_run)


def attach(job_id: str, data_dir: str | Path | None = None, database_url: str | None = None) -> Job:
    """Return the handle of a job in a data directory or database, whichever process runs it.

    An argument that is None comes from `BATCHRAY_DATA_DIR` or `BATCHRAY_DATABASE_URL`, as in `submit`.
    Raises UnknownJobError.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    job = Job(job_id, settings.data_dir, url=settings.url)
    job.record()
    return job


def shutdown() -> None:
    """Interrupt this process's jobs and end its lanes.  Python's exit does this too."""
    if _session.cache_info().currsize:
        _session().close()
        _session.cache_clear()


@functools.cache
def _session() -> Runtime:
    # The only global state of a process: its lanes are reused by the next job, and end with the process.
    return Runtime()


def _agent_set(agents: AgentsLike, providers: Providers | None = None) -> AgentSet:
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
    """Refuse a Python function that cannot be sent to a lane, before a batch that needs it is accepted."""
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


async def _watch_async(job: Job, is_shown: bool) -> Job:
    from batchray.views.progress_display import show_progress_async

    try:
        if is_shown:
            await show_progress_async(job)
        await job.wait_async()
    except asyncio.CancelledError:
        await asyncio.to_thread(job.stop)
        raise
    return job
