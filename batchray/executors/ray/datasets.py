"""Results as a Ray Dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.data import Dataset as Dataset

from batchray.config import Settings
from batchray.executors.ray.connection import connect

if TYPE_CHECKING:
    import pyarrow as pa


def dataset_of(tables: Iterable[pa.Table], schema: pa.Schema) -> Dataset:
    """Return a dataset of tables, each in the object store as soon as it is made.

    Without a connection to Ray this process joins the cluster of RAY_ADDRESS, or starts one of its own.  Raises
    ClusterError.
    """
    connect(Settings(), object_store_bytes=None)
    blocks: list[Any] = [ray.put(table) for table in tables] or [ray.put(schema.empty_table())]
    return ray.data.from_arrow_refs(blocks)
