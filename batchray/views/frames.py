"""Results as a pandas frame."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from batchray.schema import ApprovalRequestMessage, Result, ToolCallMessage
from batchray.views.carried import CarriedRows
from batchray.views.extras import needing

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def to_frame(results: Iterable[Result], rows: CarriedRows | None = None) -> pd.DataFrame:
    """Return a frame with one row per item, indexed by its position in the batch.  Durations are in seconds.

    The columns and their types are the same for every job, one without results included.  Those of `rows`, the table
    that the job was made of, come first.
    """
    with needing("pandas", "pandas"):
        import pandas as pd

    indexes: list[int] = []
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for result in results:
        indexes.append(result.index)
        for name, (_, value_of) in COLUMNS.items():
            columns[name].append(value_of(result))
    index = pd.Index(indexes, dtype="int64", name="index")
    made = {name: pd.Series(columns[name], index=index, dtype=dtype) for name, (dtype, _) in COLUMNS.items()}
    if rows is None or rows.schema is None:
        return pd.DataFrame(made, index=index)
    carried: pd.DataFrame = _in_units_of_pandas(rows.take(indexes)).to_pandas()
    carried.index = index
    names = own_names(list(COLUMNS), list(carried.columns))
    return pd.concat([carried, pd.DataFrame(made, index=index).rename(columns=names)], axis="columns")


def _in_units_of_pandas(table: pa.Table) -> pa.Table:
    """Return a table with times of day in microseconds: pandas has Python's, which know no nanoseconds."""
    import pyarrow as pa

    for number, field in enumerate(table.schema):
        if pa.types.is_time64(field.type):
            table = table.set_column(number, field.name, table.column(number).cast(pa.time64("us"), safe=False))
    return table


def own_names(names: Sequence[str], carried: Collection[str]) -> dict[str, str]:
    """Return the names of our columns in a table that has `carried` ones: `result_text` if there is a `text`."""
    found = {}
    for name in names:
        own = name
        while own in carried:
            own = f"result_{own}"
        found[name] = own
    return found


def _input(result: Result) -> str | None:
    """Return a text, or one message that is a text, as it is; anything else as JSON."""
    match result.input:
        case None | str():
            return result.input
        case [{"role": "user", "content": str(text)}]:
            return text
        case parts:
            return orjson.dumps(parts).decode()


def _tool_calls(result: Result) -> list[dict[str, Any]]:
    asked = (each for each in result.messages if isinstance(each, ToolCallMessage | ApprovalRequestMessage))
    listed = (message.tool_calls for message in asked)
    return [call.model_dump(mode="json") for calls in listed if isinstance(calls, list) for call in calls]


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


COLUMNS: Mapping[str, tuple[Any, Callable[[Result], Any]]] = {
    "custom_id": ("string", lambda result: None if result.custom_id is None else str(result.custom_id)),
    "agent_id": ("string", lambda result: result.agent_id),
    "model": ("string", lambda result: result.model),
    "status": ("string", lambda result: str(result.status)),
    "stop_reason": ("string", lambda result: str(result.stop_reason)),
    "input": ("string", _input),
    "text": ("string", lambda result: result.text),
    "error_type": ("string", lambda result: result.error.type if result.error else None),
    "error": ("string", lambda result: result.error.message if result.error else None),
    "traceback": ("string", lambda result: result.error.traceback if result.error else None),
    "stdout": ("string", lambda result: result.stdout),
    "stderr": ("string", lambda result: result.stderr),
    "prompt_tokens": ("Int64", lambda result: result.usage.prompt_tokens),
    "completion_tokens": ("Int64", lambda result: result.usage.completion_tokens),
    "cached_tokens": ("Int64", lambda result: result.usage.cached_input_tokens),
    "reasoning_tokens": ("Int64", lambda result: result.usage.reasoning_tokens),
    "cost_usd": ("Float64", lambda result: result.cost_usd),
    "steps": ("Int64", lambda result: result.usage.step_count),
    "attempts": ("Int64", lambda result: result.attempts),
    "queued_s": ("Float64", lambda result: _seconds(result.timing.queued_ns)),
    "ttft_s": ("Float64", lambda result: _seconds(result.timing.ttft_ns)),
    "duration_s": ("Float64", lambda result: _seconds(result.timing.duration_ns)),
    "messages": (object, lambda result: [each.model_dump(mode="json") for each in result.messages]),
    "tool_calls": (object, _tool_calls),
    "metadata": (object, lambda result: result.metadata),
}
"""The type of each column and its value, by name; `tool_calls` are those in `messages`."""
