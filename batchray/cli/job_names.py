"""How a job is named on the command line: by its id, by a beginning of it, or as `last`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batchray.cli.options import store_settings
from batchray.errors import AmbiguousJobError, UnknownJobError, UsageError

if TYPE_CHECKING:
    from batchray.config import StoreSettings
    from batchray.jobs.handle import Job
    from batchray.store import Store

_LAST = "last"
_PREFIX = "job-"
_N_SHOWN = 5


def find_jobs(settings: StoreSettings, names: Sequence[str]) -> list[Job]:
    """Return the handles of jobs; none of them twice.  Raises UnknownJobError and AmbiguousJobError."""
    from batchray.jobs.handle import Job
    from batchray.store import Store

    settings.check_exists()
    with Store.open_for_reading(settings.data_dir, settings.url) as store:
        job_ids = find_ids(store, names, place_of(settings))
    return [Job(job_id, settings.data_dir, url=settings.url) for job_id in job_ids]


def find_id_to_start(settings: StoreSettings, name: str) -> str:
    """Return the id of a job that is to be resumed or retried; otherwise as `find_jobs`.

    Opens the store for writing, as the job's start does: a reader refuses a database of an older version.
    """
    from batchray.schema import is_job_id
    from batchray.store import Store

    if is_job_id(name):
        return name
    settings.check_exists()
    with Store.open(settings.data_dir, settings.url, allow_network_fs=settings.allow_network_fs) as store:
        return find_ids(store, [name], place_of(settings))[0]


def reading_settings(config: Path | None, data_dir: Path | None, database_url: str | None) -> StoreSettings:
    """Return where the jobs are that a command reads.  Raises ConfigError if there are none."""
    settings = store_settings(config, data_dir, database_url)
    settings.check_exists()
    return settings


def find_ids(store: Store, names: Sequence[str], place: str) -> list[str]:
    """Return the ids of the named jobs, in that order and none of them twice.  `place` is the store in errors."""
    return list(dict.fromkeys(_find_id(store, name, place) for name in names))


def place_of(settings: StoreSettings) -> str:
    """Return how errors name the store of these settings."""
    return "the database" if settings.url else str(settings.data_dir)


def _find_id(store: Store, name: str, place: str) -> str:
    from batchray.schema import is_job_id

    if name == _LAST:
        found = store.jobs.find(kind="batch", order="desc", limit=1)
        if not found:
            raise UsageError(f"there is no job in {place} yet; `batchray run` creates one")
        return found[0].id
    if is_job_id(name):
        return store.jobs.get(name).id
    prefix = name if name.startswith(_PREFIX) else _PREFIX + name
    matching = store.jobs.ids_with_prefix(prefix, _N_SHOWN + 1) if prefix.isascii() and prefix.isprintable() else []
    if not matching:
        raise UnknownJobError(name, place)
    if len(matching) > 1:
        shown = ", ".join(matching[:_N_SHOWN]) + (", ..." if len(matching) > _N_SHOWN else "")
        raise AmbiguousJobError(name, shown)
    return matching[0]
