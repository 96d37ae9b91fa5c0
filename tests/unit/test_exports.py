"""Results as Arrow tables and as Parquet: types, joined rows, parts that are continued, and places that are refused."""

from __future__ import annotations

import datetime
import os
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchray
from batchray import Agent, AgentRequest
from batchray.batch.places import place_of
from batchray.errors import ConfigError
from batchray.views import exports, result_tables
from batchray.views.export_places import writing
from batchray.views.exports import MANIFEST


def answer(request: AgentRequest) -> str:
    if "fails" in str(request.input):
        raise ValueError("fails")
    return f"{request.input}!"


AGENT = Agent(id="a", run=answer)

TABLE = pa.table(
    {
        "question": ["one", "fails", "three", "four", "five"],
        "text": ["own", None, "column", "", "x"],
        "when": pa.array([datetime.datetime(2024, 1, n, tzinfo=datetime.UTC) for n in range(1, 6)]),
        "level": pa.array([1, 2, None, 4, 5], pa.int8()),
        "price": [Decimal("1.50"), None, Decimal("0.25"), Decimal("3.00"), Decimal("4.00")],
        "tags": [["a"], [], None, ["b", None], ["c"]],
        "raw": [b"\xff", b"", None, b"1", b"2"],
    }
)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"data_dir": tmp_path / "data", "executor": "local", "progress": False}


@pytest.fixture
def job(options: dict[str, Any]) -> batchray.Job:
    return batchray.run(TABLE, [AGENT], input_column="question", **options)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parts of two rows."""
    monkeypatch.setattr(result_tables, "_BLOCK_ROWS", 1)
    monkeypatch.setattr(exports, "_PART_ROWS", 2)


def pages_of(job: batchray.Job, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Make the job read its results in pages of `rows` rows."""
    reading = type(job)._read_page

    def read(self: batchray.Job, after: Any) -> list[Any]:
        return reading(self, after)[:rows]

    monkeypatch.setattr(type(job), "_read_page", read)


def manifest(directory: Path) -> Any:
    return orjson.loads((directory / MANIFEST).read_bytes())


def test_the_table_has_the_rows_as_they_came_and_the_results(job: batchray.Job) -> None:
    table = job.to_arrow()
    assert table.select(TABLE.column_names).equals(TABLE)
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["result_text"].to_pylist() == ["one!", "", "three!", "four!", "five!"]
    assert table["status"].to_pylist() == ["succeeded", "errored", *["succeeded"] * 3]
    assert table["error_type"].to_pylist()[1] == "ValueError"
    assert orjson.loads(table["messages"][0].as_py())[0]["content"] == "one!"
    assert table["duration_s"].type == pa.float64()


def test_the_types_do_not_depend_on_what_failed(options: dict[str, Any]) -> None:
    succeeded = batchray.run([{"agent_id": "a", "input": "x"}], [AGENT], **options)
    failed = batchray.run([{"agent_id": "a", "input": "fails"}], [AGENT], **options)
    assert succeeded.to_arrow().schema == failed.to_arrow().schema


def test_a_frame_has_the_columns_of_the_table_too(job: batchray.Job) -> None:
    frame = job.to_pandas()
    assert frame.index.name == "index"
    assert frame["text"].tolist()[:1] == ["own"]
    assert frame["result_text"].tolist()[0] == "one!"
    assert frame["when"].dtype == TABLE["when"].to_pandas().dtype
    pd.testing.assert_frame_equal(
        frame[["question", "price"]].reset_index(drop=True), TABLE.select(["question", "price"]).to_pandas()
    )


def test_a_frame_keeps_carried_integers_and_booleans_with_nulls(options: dict[str, Any]) -> None:
    integers = {f"{sign}int{bits}": 2 ** (bits - (not sign)) - 1 for sign in ("", "u") for bits in (8, 16, 32, 64)}
    columns = {name: pa.array([value, None], name) for name, value in integers.items()}
    big = 2**53 + 1
    nested = {"flags": [True, None], "lists": [[big, None], None], "structs": [{"x": big}, {"x": None}]}
    table = pa.table({"question": ["x", "y"], **columns, **nested})
    job = batchray.run(table, [AGENT], input_column="question", **options)
    frame = job.to_pandas()
    assert {name: frame[name].iloc[0] for name in integers} == integers
    assert all(frame[name].isna().tolist() == [False, True] for name in [*integers, "flags"])
    assert [str(frame[name].dtype) for name in integers] == [f"{s}Int{n}" for s in ("", "U") for n in (8, 16, 32, 64)]
    assert str(frame["flags"].dtype) == "boolean"
    assert list(frame["lists"].iloc[0]) == [big, None]
    assert frame["structs"].tolist() == [{"x": big}, {"x": None}]


def test_a_frame_has_times_of_day_in_the_units_of_pandas(options: dict[str, Any]) -> None:
    table = pa.table({"question": ["x"], "at": pa.array([1_001], pa.time64("ns"))})
    job = batchray.run(table, [AGENT], input_column="question", **options)
    assert job.to_pandas()["at"].tolist() == [datetime.time(0, 0, 0, 1)]
    assert job.to_arrow()["at"].type == pa.time64("ns")


def test_a_missing_package_is_named_with_the_extra_that_installs_it(
    job: batchray.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for export in (job.to_arrow, lambda: job.export(tmp_path / "x.csv"), lambda: job.to_parquet(tmp_path / "x")):
        with pytest.raises(ConfigError, match=r"needs pyarrow, which is not installed: pip install 'batchray\[data\]'"):
            export()
    monkeypatch.setitem(sys.modules, "pandas", None)
    for show in (job.to_pandas, lambda: batchray.compare(job)):
        with pytest.raises(ConfigError, match=r"needs pandas, which is not .*: pip install 'batchray\[pandas\]'"):
            show()


def test_to_parquet_writes_one_file_or_a_directory_of_parts(
    job: batchray.Job, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.to_parquet(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(job.to_arrow())
    pages_of(job, monkeypatch, 1)
    job.to_parquet(str(tmp_path / "out"))
    assert [part["rows"] for part in manifest(tmp_path / "out")["parts"]] == [2, 2, 1]
    assert pq.read_table(tmp_path / "out").equals(job.to_arrow())
    assert manifest(tmp_path / "out")["is_complete"]


def test_an_export_that_broke_off_is_continued(
    job: batchray.Job, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages_of(job, monkeypatch, 1)
    job.to_parquet(tmp_path / "whole")
    block = result_tables.ResultTables._page
    blocks = 0

    def breaking(self: Any, stored: Any) -> Any:
        nonlocal blocks
        blocks += 1
        if blocks == 4:
            raise KeyboardInterrupt
        return block(self, stored)

    with monkeypatch.context() as patched:
        patched.setattr(result_tables.ResultTables, "_page", breaking)
        with pytest.raises(KeyboardInterrupt):
            job.to_parquet(tmp_path / "broken")
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == [MANIFEST, "part-00000.parquet"]
    first = (tmp_path / "broken" / "part-00000.parquet").stat()
    job.to_parquet(tmp_path / "broken")
    assert (tmp_path / "broken" / "part-00000.parquet").stat().st_ino == first.st_ino
    assert pq.read_table(tmp_path / "broken").equals(pq.read_table(tmp_path / "whole"))
    assert manifest(tmp_path / "broken") == manifest(tmp_path / "whole")


def test_a_part_without_a_place_in_the_manifest_is_written_again(job: batchray.Job, tmp_path: Path) -> None:
    job.to_parquet(tmp_path / "out")
    (tmp_path / "out" / MANIFEST).unlink()
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"half")
    job.to_parquet(tmp_path / "out")
    assert pq.read_table(tmp_path / "out").equals(job.to_arrow())


def _break_metadata(part: Path) -> None:
    """Overwrite what describes the rows, but neither its length nor the magic bytes after it."""
    content = part.read_bytes()
    n_metadata = int.from_bytes(content[-8:-4], "little")
    part.write_bytes(content[: -8 - n_metadata] + b"\xff" * n_metadata + content[-8:])


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda part: part.write_bytes(part.read_bytes()[:-9]), _break_metadata]
)
@pytest.mark.parametrize("is_older", [False, True])
def test_parts_from_the_first_missing_or_damaged_one_on_are_written_again(
    job: batchray.Job,
    tmp_path: Path,
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    is_older: bool,
) -> None:
    out = tmp_path / "out"
    pages_of(job, monkeypatch, 1)
    job.to_parquet(out)
    complete = manifest(out)
    if is_older:
        parts = [{"file": part["file"], "rows": part["rows"]} for part in complete["parts"]]
        (out / MANIFEST).write_bytes(orjson.dumps(complete | {"parts": parts}))
    os.utime(out / "part-00000.parquet", (1, 1))
    damage(out / "part-00001.parquet")
    job.to_parquet(out)
    assert pq.read_table(out).equals(job.to_arrow())
    assert manifest(out) == complete
    assert ((out / "part-00000.parquet").stat().st_mtime == 1) is not is_older  # an older manifest begins again


def test_a_later_part_that_is_written_into_an_earlier_one_is_deleted(
    job: batchray.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(result_tables, "_BLOCK_ROWS", 1)
        patched.setattr(exports, "_PART_ROWS", 2)
        pages_of(job, patched, 1)
        job.to_parquet(tmp_path / "out")
    (tmp_path / "out" / "part-00000.parquet").unlink()
    job.to_parquet(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("part-*")] == ["part-00000.parquet"]
    assert pq.read_table(tmp_path / "out").equals(job.to_arrow())


class Gate:
    """An agent whose first requests are answered at once, and the others when `open` is set."""

    def __init__(self, n_first: int) -> None:
        self.n_first, self.open = n_first, threading.Event()

    def __call__(self, request: AgentRequest) -> str:
        if int(str(request.input)) >= self.n_first:
            assert self.open.wait(30)
        return f"{request.input}!"


def test_a_running_job_is_exported_and_later_the_rest(options: dict[str, Any], tmp_path: Path) -> None:
    gate = Gate(3)
    del options["progress"]
    requests = [{"agent_id": "a", "input": str(n)} for n in range(8)]
    job = batchray.submit(requests, [Agent(id="a", run=gate)], **options)
    results = job.results()
    assert {next(results).text for _ in range(3)} == {"0!", "1!", "2!"}
    job.to_parquet(tmp_path / "out")
    assert sorted(pq.read_table(tmp_path / "out")["index"].to_pylist()) == [0, 1, 2]
    assert not manifest(tmp_path / "out")["is_complete"]
    gate.open.set()
    job.wait(30)
    job.to_parquet(tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert sorted(table["text"].to_pylist()) == [f"{n}!" for n in range(8)]
    assert [part["rows"] for part in manifest(tmp_path / "out")["parts"]] == [3, 5]
    assert manifest(tmp_path / "out")["is_complete"]


def test_a_retry_begins_the_export_again(options: dict[str, Any], tmp_path: Path) -> None:
    requests = [{"agent_id": "a", "input": text} for text in ("x", "fails")]
    job = batchray.run(requests, [AGENT], **options)
    job.to_parquet(tmp_path / "out")
    job = batchray.retry(job.id, [Agent(id="a", run=lambda request: "fixed")], **options)
    job.to_parquet(tmp_path / "out")
    assert pq.read_table(tmp_path / "out")["text"].to_pylist() == ["x!", "fixed"]


def test_a_place_that_holds_something_else_is_refused(
    job: batchray.Job, options: dict[str, Any], tmp_path: Path
) -> None:
    other = batchray.run([{"agent_id": "a", "input": "x"}], [AGENT], **options)
    other.to_parquet(tmp_path / "other")
    with pytest.raises(ConfigError, match=f"holds an export of job {other.id}; name"):
        job.to_parquet(tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match=r"holds something else than an export, such as 'notes\.txt'"):
        job.to_parquet(tmp_path / "mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / MANIFEST).write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read as the manifest of an export"):
        job.to_parquet(tmp_path / "damaged")
    with pytest.raises(ConfigError, match=r"cannot be written: .*directory"):
        job.to_parquet(tmp_path / "missing" / "out.parquet")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.fixture
def memory() -> Iterator[Any]:
    from fsspec.implementations.memory import MemoryFileSystem

    yield MemoryFileSystem()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs.clear()


def test_an_address_of_a_file_system_is_written_to(job: batchray.Job, memory: Any) -> None:
    job.to_parquet("memory://bucket/out")
    job.to_parquet("memory://bucket/out")
    job.to_parquet("memory://bucket/out.parquet")
    expected = job.to_arrow()
    with memory.open("/bucket/out/part-00000.parquet") as file:
        assert pq.read_table(file).equals(expected)
    with memory.open("/bucket/out.parquet") as file:
        assert pq.read_table(file).equals(expected)
    assert not [name for name in memory.find("/bucket") if name.endswith(".part")]


def test_an_export_that_fails_leaves_no_half_file_at_an_address(memory: Any) -> None:
    place = place_of("memory://bucket/out.parquet")
    with pytest.raises(ValueError, match="broken"), writing(place) as file:  # noqa: PT012  # the block is what fails
        file.write(b"half")
        raise ValueError("broken")
    assert not memory.find("/bucket")


def test_a_column_that_parquet_cannot_hold_is_named_in_the_error(options: dict[str, Any], tmp_path: Path) -> None:
    table = pa.table({"q": ["x"], "empty": pa.array([{}], pa.struct([]))})
    job = batchray.run(table, [AGENT], input_column="q", **options)
    with pytest.raises(ConfigError, match=r"Parquet cannot hold a column; to_arrow can: .*'empty'"):
        job.to_parquet(tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))
    assert job.to_arrow()["empty"].to_pylist() == [{}]
