"""Start jobs in this process: a new batch, or a job of the store that continues or is retried."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, NamedTuple

from batchray.agents.build import check_agents_build
from batchray.batch.formats.options import NO_OPTIONS, InputOptions
from batchray.batch.split import read_callback_url
from batchray.config import AgentSet, Settings, chosen_settings, with_earlier
from batchray.errors import ConfigError, StoreLockedError
from batchray.jobs.control import reopen_job
from batchray.jobs.create import Requests, create_job
from batchray.jobs.handle import Job
from batchray.jobs.runtime import Runtime
from batchray.store import Store

logger = logging.getLogger(__name__)

# Where Ray unpacks the working directory of a job that `ray job submit` gave it.
_RAY_WORKING_DIR = "/runtime_resources/working_dir_files/"


class Output(NamedTuple):
    """The file that a job's results are written to at its end, and whether with the input of each request."""

    file: Path
    include_input: bool = False


def submit_with(
    chosen: Settings,
    requests: Requests,
    bound: AgentSet,
    callback_url: str | None = None,
    output: Output | None = None,
    options: InputOptions = NO_OPTIONS,
    reuse: str | None = None,
) -> Job:
    """Accept a batch with these settings; otherwise as `submit`.  A resume takes over `output`, the results' file."""
    check_agents_build(bound)
    _check_travel(bound, chosen)
    if callback_url is not None:
        callback_url = read_callback_url(callback_url)
    runtime = session()
    _warn_of_temporary_directory(chosen)
    store = runtime.open_store(chosen)
    try:
        used: list[AgentSet] = []
        needs_check = any(agent.agent.placement == "process" for agent in bound.agents.values())
        executor = runtime.executor(chosen) if needs_check else None

        def check(agents: AgentSet) -> None:
            used.append(agents)
            if executor is not None:
                executor.check(agents)  # what no node can run is refused before the batch is accepted

        kept = run_options(chosen, output)
        job_id = runtime.wait(create_job(store, requests, bound, callback_url, kept, check, options, reuse))
        return _started(job_id, used[0], store, chosen)
    except BaseException:
        runtime.release_store(store)
        raise


def start_again(
    chosen: Settings, job_id: str, given: AgentSet | None, output: Output | None = None, *, is_retry: bool
) -> Job:
    """Start a job of the store in this process.  A job that has nothing to run is returned as it is.

    `given` agents replace those of the job with the same ids.  Settings that are not chosen, and `output`, are those of
    the job's last run.
    """
    chosen.check_exists()
    runtime = session()
    try:
        store = runtime.open_store(chosen)  # for writing: it brings a database of an older version up to this one
    except StoreLockedError:
        if is_retry and (done := _with_nothing_to_retry(job_id, chosen)) is not None:
            return done
        raise
    try:
        record = store.database.run(store.jobs.get, job_id)
        if record.counts["succeeded"] == record.total if is_retry else record.is_ended:
            runtime.release_store(store)
            return Job(job_id, chosen.data_dir, url=chosen.url)
        if is_retry and not record.is_ended:
            raise _not_ended(job_id)
        chosen = store.database.run(_taking_over, store, job_id, chosen, output)
        snapshot = store.database.run(store.jobs.agent_snapshot, job_id)
        bound = AgentSet.from_snapshot(snapshot, given)
        check_agents_build(bound)
        _check_travel(bound, chosen)
        if is_retry:
            store.database.run(reopen_job, store, job_id)
        return _started(job_id, bound.only(snapshot.keys()), store, chosen)
    except BaseException:
        runtime.release_store(store)
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


def run_options(settings: Settings, output: Output | None) -> dict[str, Any]:
    """Return what a resume takes over, as the store keeps it."""
    kept: dict[str, Any] = {"settings": chosen_settings(settings)}
    if output is not None:
        kept["output"], kept["include_input"] = str(output.file.absolute()), output.include_input
    return kept


def _taking_over(store: Store, job_id: str, settings: Settings, output: Output | None) -> Settings:
    """Return settings completed by those of a job's last run, and store what this run was given."""
    earlier = store.jobs.run_options(job_id)
    settings = with_earlier(settings, earlier.get("settings", {}))
    kept = {**earlier, **run_options(settings, output)}
    kept["settings"] = chosen_settings(settings)
    if kept != earlier:
        store.jobs.set_run_options(job_id, kept)
    return settings


def _not_ended(job_id: str) -> ConfigError:
    return ConfigError(f"job {job_id} has not ended; `batchray resume` continues it")


def _started(job_id: str, agents: AgentSet, store: Store, settings: Settings) -> Job:
    local_run = session().start(job_id, agents, store, settings)
    return Job(job_id, store.data_dir, url=settings.url, local_run=local_run)


def output_of(job: Job) -> Output | None:
    """Return where a job's last run was to write its results; None if it was given no file."""
    with Store.open_for_reading(job.data_dir, job.url) as store:
        kept = store.jobs.run_options(job.id)
    return Output(Path(kept["output"]), kept.get("include_input", False)) if "output" in kept else None


def shutdown() -> None:
    """Interrupt this process's jobs and end its lanes.  Python's exit does this too."""
    if session.cache_info().currsize:
        session().close()
        session.cache_clear()


@functools.cache
def session() -> Runtime:
    """Return the runtime that all jobs of this process share."""
    # The only global state of a process: its lanes are reused by the next job, and end with the process.
    return Runtime()


def _warn_of_temporary_directory(settings: Settings) -> None:
    """Warn if results would be deleted by Ray: it unpacks the files of a submitted job into its own directory."""
    if settings.url is None and _RAY_WORKING_DIR in str(settings.data_dir.absolute()):
        logger.warning(
            "%s is in the working directory of a job that was submitted to Ray, which Ray deletes after the job; give a"
            " data_dir outside of it",
            settings.data_dir.absolute(),
        )


def _check_travel(agents: AgentSet, settings: Settings) -> None:
    """Refuse a Python function that cannot be sent to a lane, before a batch that needs it is accepted."""
    given = ((bound, (bound.agent.run, *bound.agent.tool_functions)) for bound in agents.agents.values())
    carried = [bound for bound, functions in given if any(map(callable, functions))]
    if carried and settings.executor == "ray":
        from batchray.executors.ray.lane import pack

        for bound in carried:
            pack(bound)
