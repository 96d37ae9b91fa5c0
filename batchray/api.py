"""The Python API: run a batch, resume or retry a job, attach to one.

`run`, `resume` and `retry` watch their job to its end; `arun`, `aresume` and `aretry` do so in async code.  `submit`,
`submit_resume` and `submit_retry` return at once, and the job runs in the background of this process.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar, Unpack

from pydantic import SecretStr, ValidationError

from batchray.batch.formats.options import InputOptions
from batchray.config import (
    Agent,
    AgentSet,
    Provider,
    bind_agents,
    load_agents,
    load_settings,
)
from batchray.errors import ConfigError, UsageError
from batchray.jobs.create import Requests, collect
from batchray.jobs.handle import Job
from batchray.jobs.start import shutdown as shutdown
from batchray.jobs.start import start_again, submit_with
from batchray.jobs.states import state_of
from batchray.schema.validation_text import first_problem
from batchray.store import Store
from batchray.support.keywords import check_keywords

AgentsLike = Sequence[Agent | Mapping[str, Any]] | Sequence[str | Path] | str | Path | AgentSet
"""Agents, or the path of an agents file, or of several."""

Providers = Mapping[str, Provider | Mapping[str, Any]]
"""Providers by name."""

M = TypeVar("M", Agent, Provider)
P = ParamSpec("P")
T = TypeVar("T")


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
    max_failures: int | str | None
    max_consecutive_failures: int | None
    provider_start_patience_s: float | None
    min_watched_items: int | None


class ResumeOptions(SettingsOptions, total=False):
    """What `resume` and `retry` take besides the job and its agents."""

    providers: Providers | None


class RowOptions(TypedDict, total=False):
    """The fields of `InputOptions` as keyword arguments: how rows or lines become requests."""

    format: str | None
    agent: str | None
    input_column: str | None
    prompt: str | None
    id_column: str | None
    to_request: Callable[[dict[str, Any]], Any] | None


class SubmitOptions(RowOptions, ResumeOptions, total=False):
    """What `run` and `submit` take besides the requests and their agents."""

    callback_url: str | None
    reuse: Job | str | None


def _short_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Raise a UsageError of a function without the frames inside it: its sentence says all that the caller needs."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            check_keywords(function, kwargs)
            return function(*args, **kwargs)
        except UsageError as error:
            raise error.with_traceback(None) from None

    return call


def _short_async_errors(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Do the same for an async function."""

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            check_keywords(function, kwargs)
            return await function(*args, **kwargs)
        except UsageError as error:
            raise error.with_traceback(None) from None

    return call


@_short_errors
def run(requests: Requests, agents: AgentsLike, *, progress: bool = True, **options: Unpack[SubmitOptions]) -> Job:
    """Run a batch, show its progress, and return the ended job.

    Takes the arguments of `submit`.  Works inside a running event loop, as in a notebook.  An interrupt (Ctrl-C) stops
    the job, keeps every outcome, and is raised again; `resume` continues the job.
    """
    return _watch(submit(requests, agents, **options), progress)


@_short_async_errors
async def arun(
    requests: Requests, agents: AgentsLike, *, progress: bool = False, **options: Unpack[SubmitOptions]
) -> Job:
    """Run a batch from async code and return the ended job.  Cancelling the call interrupts the job, as in `run`."""
    if isinstance(requests, AsyncIterable):
        rows, settings = _split(options)
        bound = _agent_set(agents, options.get("providers"))
        requests = await collect(requests, load_settings(**settings).data_dir, bound, rows)
    job = await asyncio.to_thread(submit, requests, agents, **options)
    return await _watch_async(job, progress)


@_short_errors
def submit(requests: Requests, agents: AgentsLike, **options: Unpack[SubmitOptions]) -> Job:
    """Accept a batch and return its job, which runs in the background of this process.

    `requests` is a path or an address (JSON Lines, JSON, Parquet, CSV, Arrow, a saved dataset, batches of OpenAI or
    Anthropic), an open binary file, an iterable or async iterable of requests or rows, or a table: a pandas, Polars or
    pyarrow one, a Hugging Face Dataset or a Ray Dataset.  `agents` are agents or the path of an agents file.  The job
    and all its items are on disk when this returns.

    Of a table, `agent` answers each row; `input_column` is the input, or `prompt`, a template such as
    "Answer: {question}", or what the function `to_request` returns for a row: the input, or a whole request.
    `id_column` is the `custom_id`.  All columns come back as `row` of the results.  `format` is needed if a file's name
    and content do not tell it.

    `reuse` is an earlier job of the same data directory or database.  Its outcomes that succeeded are taken over for
    requests that are equal, to agents that are equal, their code included; only the others run.  What a stateful agent
    answered is never taken over.  The other options are fields of `Settings`.

    Raises BatchFormatError or ConfigError if any of the input cannot be used; nothing has run then.
    """
    rows, settings = _split(options)
    bound = _agent_set(agents, options.get("providers"))
    reuse = options.get("reuse")
    return submit_with(
        load_settings(**settings),
        requests,
        bound,
        options.get("callback_url"),
        options=rows,
        reuse=reuse.id if isinstance(reuse, Job) else reuse,
    )


def _split(options: SubmitOptions) -> tuple[InputOptions, dict[str, Any]]:
    """Return the options about rows, and those that are settings."""
    rows: dict[str, Any] = {name: value for name, value in options.items() if name in RowOptions.__annotations__}
    others = ("providers", "callback_url", "reuse", *rows)
    return InputOptions(**rows), {name: value for name, value in options.items() if name not in others}


@_short_errors
def resume(
    job_id: str, agents: AgentsLike | None = None, *, progress: bool = True, **options: Unpack[ResumeOptions]
) -> Job:
    """Continue an unfinished job and return it ended.  Items that have an outcome are not run again.

    The job's agents come from its snapshot in the store; `agents` replaces those with the same ids.
    Raises UnknownJobError, and ConfigError if an agent's function or key cannot be found.
    """
    return _watch(submit_resume(job_id, agents, **options), progress)


@_short_async_errors
async def aresume(
    job_id: str, agents: AgentsLike | None = None, *, progress: bool = False, **options: Unpack[ResumeOptions]
) -> Job:
    """Continue an unfinished job from async code; otherwise as `resume`."""
    return await _watch_async(await asyncio.to_thread(submit_resume, job_id, agents, **options), progress)


@_short_errors
def submit_resume(job_id: str, agents: AgentsLike | None = None, **options: Unpack[ResumeOptions]) -> Job:
    """Continue an unfinished job in the background of this process; otherwise as `resume`."""
    return _start_again(job_id, agents, is_retry=False, **options)


@_short_errors
def retry(
    job_id: str, agents: AgentsLike | None = None, *, progress: bool = True, **options: Unpack[ResumeOptions]
) -> Job:
    """Run the items of an ended job that did not succeed again, and return the job ended.

    Their failed outcomes are deleted; those that succeeded stay as they are.  If all have succeeded nothing runs.
    Raises UnknownJobError, and ConfigError if the job has not ended or an agent's function or key cannot be found.
    """
    return _watch(submit_retry(job_id, agents, **options), progress)


@_short_async_errors
async def aretry(
    job_id: str, agents: AgentsLike | None = None, *, progress: bool = False, **options: Unpack[ResumeOptions]
) -> Job:
    """Run the failed items of an ended job again from async code; otherwise as `retry`."""
    return await _watch_async(await asyncio.to_thread(submit_retry, job_id, agents, **options), progress)


@_short_errors
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
    given = _agent_set(agents, providers) if agents is not None else None
    return start_again(load_settings(**settings), job_id, given, is_retry=is_retry)


@_short_errors
def attach(job_id: str, data_dir: str | Path | None = None, database_url: str | None = None) -> Job:
    """Return the handle of a job in a data directory or database, whichever process runs it.

    An argument that is None comes from `BATCHRAY_DATA_DIR` or `BATCHRAY_DATABASE_URL`, as in `submit`.
    Raises UnknownJobError.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    job = Job(job_id, settings.data_dir, url=settings.url)
    job.record()
    return job


@_short_errors
def jobs(data_dir: str | Path | None = None, database_url: str | None = None, *, limit: int | None = None) -> list[Job]:
    """Return the handles of the jobs in a data directory or database, the newest first; at most `limit` of them.

    An argument that is None comes from `BATCHRAY_DATA_DIR` or `BATCHRAY_DATABASE_URL`, as in `submit`.
    Raises StoreError if there is no store.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    with Store.open_for_reading(settings.data_dir, settings.url) as store:
        running = store.running_jobs()
        return [
            Job(
                record.id,
                settings.data_dir,
                url=settings.url,
                seen=f"{state_of(record, store, running)}, {record.done:,} of {record.total:,} done",
            )
            for record in store.jobs.find(kind="batch", order="desc", limit=limit)
        ]


def _agent_set(agents: AgentsLike, providers: Providers | None = None) -> AgentSet:
    """Return the agents bound to their providers.  Raises ConfigError for one that is not valid."""
    if isinstance(agents, AgentSet):
        return agents
    if isinstance(agents, str | Path):
        return load_agents(agents)
    if not isinstance(agents, Iterable) or isinstance(agents, Agent | Mapping):
        kind = type(agents).__name__
        raise ConfigError(f"agents is a list of agents, or the path of an agents file, not {kind}")
    given: list[Any] = list(agents)
    if given and all(isinstance(each, str | Path) for each in given):
        return load_agents(given)
    if not isinstance(providers or {}, Mapping):
        raise ConfigError(f"providers is a mapping of names to providers, not a {type(providers).__name__}")
    parsed = [_validated(Agent, agent, f"agents[{position}]") for position, agent in enumerate(given)]
    known = {name: _validated(Provider, each, f"providers[{name!r}]") for name, each in (providers or {}).items()}
    return bind_agents(parsed, known, import_paths=[str(Path.cwd())])


def _validated(model: type[M], given: M | Mapping[str, Any], place: str) -> M:
    if isinstance(given, model):
        return given
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ConfigError(first_problem(error, model), place) from None


def _watch(job: Job, is_shown: bool) -> Job:
    from batchray.views.progress_display import show_progress

    try:
        if is_shown:
            show_progress(job)
        job.wait()
    except KeyboardInterrupt:
        job.stop()
        _say_how_to_resume(job)
        raise
    return job


def _say_how_to_resume(job: Job) -> None:
    """Print what an interrupt left, to standard error as the progress is."""
    from batchray.views.next_steps import JobLocation, in_python

    record = job.record()
    if not record.is_ended:
        call = in_python("resume", record.id, JobLocation(job.data_dir, job.url), job.agents().values())
        left = f"job {record.id}: interrupted with {record.done:,} of {record.total:,} done; all of them are kept"
        print(f"{left}\nto continue: {call}", file=sys.stderr)  # noqa: T201


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
