"""Results as a Ray Dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.data import Dataset as Dataset

if TYPE_CHECKING:
    import pyarrow as pa


def dataset_of(tables: Iterable[pa.Table], schema: pa.Schema) -> Dataset:
    """Return a dataset of tables, each in the object store as soon as it is made.

    Without a connection to Ray this process starts a cluster or joins that of RAY_ADDRESS, as Ray Data does.
    """
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    blocks: list[Any] = [ray.put(table) for table in tables] or [ray.put(schema.empty_table())]
    return ray.data.from_arrow_refs(blocks)
