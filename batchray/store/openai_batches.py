"""The table of what only OpenAI's API has of a batch.  `Jobs.create` writes its rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.store.database import Database, chunks
from batchray.store.records import JobRecord
from batchray.store.tables import jobs, openai_batches

Spec = Mapping[str, Any]


class OpenAIBatches:
    """The part of batches that only OpenAI's API has, as plain data in the format of the server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def spec(self, job: JobRecord) -> Spec | None:
        """Return the data of a batch, or None if it was made in another way."""
        return self.specs([job]).get(job.key)

    def specs(self, records: Collection[JobRecord]) -> dict[int, Spec]:
        """Return the data of several batches by the keys of their jobs."""
        found: dict[int, Spec] = {}
        with self._database.reading() as connection:
            for chunk in chunks(record.key for record in records):
                query = sa.select(openai_batches).where(openai_batches.c.job.in_(chunk))
                found |= {row.job: orjson.loads(row.spec) for row in connection.execute(query)}
        return found

    def change(self, job: JobRecord, change: Callable[[Spec], Spec]) -> Spec:
        """Replace the data of a batch by what `change` returns for it; empty if there is none yet."""
        with self._database.transaction() as connection:
            # Locked, so that no other process changes them meanwhile, nor deletes the job.
            connection.execute(sa.select(jobs.c.job).where(jobs.c.job == job.key).with_for_update())
            here = openai_batches.c.job == job.key
            before = connection.execute(sa.select(openai_batches.c.spec).where(here)).scalar()
            spec = change(orjson.loads(before or b"{}"))
            connection.execute(sa.delete(openai_batches).where(here))
            connection.execute(sa.insert(openai_batches).values(job=job.key, spec=orjson.dumps(spec)))
        return spec
