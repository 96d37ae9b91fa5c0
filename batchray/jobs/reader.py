"""The part of a job's handle that reads: its record, its results, and their tables."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchray.errors import UnknownItemError, UsageError
from batchray.schema import Result
from batchray.store import FailureKind, JobRecord, Store, StoredResult, Tally, run_all
from batchray.views.carried import CarriedRows
from batchray.views.csv_export import write_csv
from batchray.views.export_formats import OPENAI_ENDPOINTS, Target, export_format
from batchray.views.exports import Export, write_parquet
from batchray.views.frames import to_frame
from batchray.views.line_exports import ExportSource, write_lines
from batchray.views.plain_text import in_short
from batchray.views.result_columns import result_columns
from batchray.views.result_pages import PageQuery, ResultCursor, ResultOrder
from batchray.views.result_tables import ResultTables
from batchray.views.results import ResultViews

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from batchray.executors.ray.datasets import Dataset

POLL_S = 0.25
"""How often the store is asked for what another process writes."""


class JobReader(ABC):  # more than 20 methods, because half of the public API of a job is here
    """Reads a job from the store.  It holds no results."""

    def __init__(self, job_id: str, data_dir: Path, url: str | None) -> None:
        self.id, self.data_dir, self.url = job_id, data_dir, url
        self._reader: Store | None = None
        self._reader_lock = threading.Lock()

    def record(self) -> JobRecord:
        """Return the job as the store has it now."""
        return self._store().jobs.get(self.id)

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether no more results will come."""

    def failures(self) -> list[FailureKind]:
        """Return the kinds of failures so far, the most frequent first."""
        return self._store().tallies.failure_kinds(self._accepted)

    def agents(self) -> dict[str, dict[str, Any]]:
        """Return the settings of the job's agents by id, as they were stored with it."""
        return {name: kept["agent"] for name, kept in self._store().jobs.agent_snapshot(self.id).items()}

    def results(
        self, order: ResultOrder = "finish", *, wait: bool = True, failed: bool = False, include_input: bool = False
    ) -> Iterator[Result]:
        """Yield results, while the job runs too.

        They come in finish order, or in index order, in which each waits for those before it.  With `wait=False` it
        yields the results of this moment, with `failed=True` only those that did not succeed.  With
        `include_input=True` each has the input of its request.
        """
        views = self._views(include_input)
        for page in self._pages(order, wait=wait, failed=failed):
            for stored in page:
                if not failed or stored.status != "succeeded":
                    yield views.result(stored)

    async def aresults(
        self, order: ResultOrder = "finish", *, wait: bool = True, failed: bool = False, include_input: bool = False
    ) -> AsyncIterator[Result]:
        """Yield results in async code; otherwise as `results`."""
        views = await asyncio.to_thread(self._views, include_input)
        pages = self._follow(order, wait=wait, failed=failed)
        while (page := await asyncio.to_thread(next, pages, ())) != ():
            for stored in page or ():
                if not failed or stored.status != "succeeded":
                    yield views.result(stored)
            if page is None:
                await asyncio.sleep(POLL_S)

    def result(self, index: int | None = None, *, custom_id: str | int | None = None) -> Result:
        """Return the result of one item with its input, found by its index or its `custom_id` (the first that has it).

        Raises UnknownItemError if the job has no such item, or if it has no outcome yet.
        """
        if (index is None) == (custom_id is None):
            raise UsageError("result: give an index or a custom_id")
        store, job = self._store(), self._accepted
        known = f"it has {job.total:,} items, with the indices 0 to {job.total - 1}"
        if index is None:
            named = store.items.find(job, custom_id=str(custom_id), limit=1)
            if not named:
                raise UnknownItemError(self.id, f"no item has the custom_id {in_short(str(custom_id))!r}; {known}")
            index = named[0].index
        if not 0 <= index < job.total:
            raise UnknownItemError(self.id, f"there is no item {index}; {known}")
        if (stored := store.items.result(job, index)) is None:
            raise UnknownItemError(self.id, f"item {index} has no outcome yet")
        return self._views(include_input=True).result(stored)

    def to_pandas(self) -> pd.DataFrame:
        """Return the results as a frame, one row per item in index order.  Needs the extra `batchray[pandas]`.

        The columns of the table that the job was made of come first.  A column of results whose name one of them has is
        named `result_...`.
        """
        views = self._views()
        return to_frame((result_columns(views, page) for page in self._pages("index")), self._rows())

    def to_arrow(self) -> pa.Table:
        """Return the results as a table in index order, with the columns of `to_pandas`.  Needs `batchray[data]`.

        `index` is a column; messages, tool calls and metadata are JSON.  The types are the same for every job, and the
        columns of the job's own table have the types in which they came.
        """
        return self._tables().table()

    def to_parquet(self, path: str | Path) -> None:
        """Write the results as Parquet, with the columns of `to_arrow`.  Needs `batchray[data]`.

        A path or an address (s3://...) that ends in .parquet becomes one file, which replaces what is there.  Any other
        becomes a directory of parts with a manifest, in bounded memory: a call that was interrupted, or that was made
        while the job ran, is continued by the next one.  A part is there whole or not at all, and never changes.

        Raises ConfigError if the place cannot be written to, or holds something else.
        """
        write_parquet(path, self._tables(), Export.of(self._store(), self.record()))

    def export(self, target: Target, format: str | None = None, *, endpoint: str = OPENAI_ENDPOINTS[0]) -> None:
        """Write the results of this moment to a file, in index order; it appears whole or not at all.

        `target` is a path, an address (s3://...) or an open binary file; a name that ends in .gz or .zst is compressed.
        Without a `format` its name tells that:

        - `parquet`: as `to_parquet`.
        - `csv`: the columns of `to_arrow`, with JSON for nested ones.
        - `jsonl`: a line for each result, with its input.
        - `openai`: the output file of OpenAI's Batch API, and if there are errors the error file, `x.errors.jsonl`.
          `endpoint` is the one whose objects the lines have.
        - `anthropic`: the results file of Anthropic's Message Batches.
        - `sft`: chat messages with tools of the requests that succeeded, to fine-tune a model.
        - `atif`: trajectories in Harbor's format, one a line; or in a directory, which has a name without a suffix, one
          a file, as Harbor's own tools read them.

        Raises UsageError for a format that is unknown or that the name does not tell, and ConfigError if the place
        cannot be written to, or a tool that `sft` describes cannot be imported.
        """
        name = export_format(target, format)
        if name == "parquet":
            self.to_parquet(str(target))
        elif name == "csv":
            write_csv(target, self._tables())
        else:
            agents = self._store().jobs.agent_snapshot(self.id)
            source = ExportSource(self._accepted, agents, self._rows(), self._read_page)
            write_lines(target, name, source, endpoint)

    def to_dataset(self) -> Dataset:
        """Return the results as a Ray Dataset, with the columns of `to_arrow`.  Connects to Ray if needed."""
        from batchray.executors.ray.datasets import dataset_of

        tables = self._tables()
        return dataset_of(tables.tables(), tables.schema)

    @functools.cached_property
    def _accepted(self) -> JobRecord:
        """The job's record, for the fields that never change."""
        return self.record()

    def _views(self, include_input: bool = False) -> ResultViews:
        snapshot = self._store().jobs.agent_snapshot(self.id)
        return ResultViews(self._accepted, snapshot, include_input=include_input, rows=self._rows())

    def _rows(self) -> CarriedRows:
        return CarriedRows(functools.partial(self._store().items.carried_columns, self._accepted))

    def _tables(self) -> ResultTables:
        return ResultTables(self._views(), self._rows(), self._read_page)

    def _store(self) -> Store:
        """Return the reader of the store.  It is opened on first use, and closed with this object or at exit."""
        with self._reader_lock:
            if self._reader is None:
                # Without a pool: a program may keep a handle for each of thousands of jobs.
                self._reader = Store.open_for_reading(self.data_dir, self.url, is_pooled=False)
                weakref.finalize(self, self._reader.close)
            return self._reader

    def _tally(self) -> Tally:
        return run_all(self._store().tallies.tally(self._accepted))

    def _pages(
        self, order: ResultOrder, *, wait: bool = True, failed: bool = False
    ) -> Iterator[Sequence[StoredResult]]:
        for page in self._follow(order, wait=wait, failed=failed):
            if page is None:
                time.sleep(POLL_S)
            else:
                yield page

    def _follow(self, order: ResultOrder, *, wait: bool, failed: bool) -> Iterator[Sequence[StoredResult] | None]:
        """Yield pages; None whenever all results so far are read, before the job is over."""
        cursor = ResultCursor(order, failed=failed)
        return cursor.follow(self._read_page, lambda: not wait or self.is_done)

    def _read_page(self, query: PageQuery) -> list[StoredResult]:
        return self._store().items.results(self._accepted, **query)
