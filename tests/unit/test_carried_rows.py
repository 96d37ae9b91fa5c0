"""Jobs made of tables: the row of each result, from the store, in any order of finish."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

import batchray
from batchray import Agent
from batchray.batch.formats import arrow
from batchray.cli.main import cli
from batchray.errors import BatchFormatError
from batchray.server.result_streams import PageSource, ResultForm
from batchray.store import CarriedColumns, Store
from batchray.views.carried import CarriedRows
from batchray.views.result_pages import START

AGENT = Agent(id="a", model="offline/rules")
TABLE = pa.table(
    {
        "q": [f"text {i}" for i in range(7)],
        "price": pa.array([Decimal(i) / 4 for i in range(7)], pa.decimal128(9, 2)),
        "raw": [bytes([i, 255]) for i in range(7)],
        "at": pa.array([i * 1_000_000 for i in range(7)], pa.timestamp("us", "UTC")),
    }
)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the options of a run in this process, with parts of three rows."""
    monkeypatch.setattr("batchray.batch.formats.sources.PART_ROWS", 3)
    return {"executor": "local", "data_dir": tmp_path / "data", "progress": False}


def test_a_result_has_the_row_that_its_request_was_made_of(options: Any) -> None:
    job = batchray.run(TABLE, [AGENT], input_column="q", **options)
    for order in ("finish", "index"):
        results = list(job.results(order))
        assert [result.row for result in results] == [TABLE.to_pylist()[result.index] for result in results]
    line = json.loads(results[5].model_dump_json())
    assert line["row"] == {"q": "text 5", "price": "1.25", "raw": "Bf8=", "at": "1970-01-01T00:00:05+00:00"}


def test_rows_are_read_by_index_in_their_own_types(options: Any) -> None:
    job = batchray.run(TABLE, [AGENT], input_column="q", **options)
    with Store.open_for_reading(options["data_dir"]) as store:
        record, reads = store.jobs.get(job.id), list[int]()

        def read(index: int) -> CarriedColumns | None:
            reads.append(index)
            return store.items.carried_columns(record, index)

        rows = CarriedRows(read)
        assert rows.schema == TABLE.schema
        assert rows.take([0, 1, 2, 4, 6]).equals(TABLE.take([0, 1, 2, 4, 6]))
        assert rows.take([6, 0]).equals(TABLE.take([6, 0]))
        assert rows.take([]).equals(TABLE.slice(0, 0))
        assert [rows.row(index) for index in range(7)] == TABLE.to_pylist()
        assert reads == [0, 4, 6]  # each part once


def test_a_job_without_a_table_has_no_rows(options: Any) -> None:
    job = batchray.run([{"agent_id": "a", "input": "x"}], [AGENT], **options)
    [result] = job.results()
    assert result.row is None
    with Store.open_for_reading(options["data_dir"]) as store:
        record = store.jobs.get(job.id)
        rows = CarriedRows(lambda index: store.items.carried_columns(record, index))
        assert (rows.schema, rows.row(0)) == (None, None)
        with pytest.raises(ValueError, match="the job was not made of a table"):
            rows.take([0])


async def test_rows_may_come_from_an_async_iterable(options: Any) -> None:
    async def rows() -> AsyncIterator[dict[str, Any]]:
        for i in range(5):
            yield {"q": f"text {i}", "n": i}

    job = await batchray.arun(rows(), [AGENT], prompt="Say {q}.", id_column="n", **options)
    results = [result async for result in job.aresults("index")]
    assert [(result.custom_id, result.row) for result in results] == [(i, {"q": f"text {i}", "n": i}) for i in range(5)]

    async def bad() -> AsyncIterator[dict[str, Any]]:
        yield {"q": "x"}
        yield {"q": None}

    with pytest.raises(BatchFormatError, match=r"^row 1: column 'q': is empty"):
        await batchray.arun(bad(), [AGENT], input_column="q", **options)


def test_retention_deletes_the_rows_of_a_job(options: Any) -> None:
    job = batchray.run(TABLE, [AGENT], input_column="q", **options)
    with Store.open(options["data_dir"]) as store:
        record = store.jobs.get(job.id)
        while store.retention.prune("9999"):
            pass
        assert store.items.carried_columns(record, 0) is None


def test_the_command_runs_a_table_and_prints_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("agents.yaml").write_text("agents: [{id: a, model: offline/rules}, {id: b, model: offline/rules}]")
    Path("questions.csv").write_text("id,question,label\n7,What is 1?,x\n8,What is 2?,\n")
    mapping = ["--agent", "b", "--prompt", "Answer: {question}", "--id-column", "id"]
    run = ["run", "questions.csv", "--agents", "agents.yaml", "--executor", "local", "--quiet", "--output", "out.jsonl"]
    done = CliRunner().invoke(cli, [*run, *mapping])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(line["custom_id"], line["agent_id"]) for line in lines] == [(7, "b"), (8, "b")]
    assert lines[0]["row"] == {"id": 7, "question": "What is 1?", "label": "x"}
    assert lines[1]["row"]["label"] is None
    assert CliRunner().invoke(cli, ["results", "last", "--include-input", "--output", "again.jsonl"]).exit_code == 0
    printed = Path("again.jsonl").read_text().splitlines()
    assert [json.loads(line)["input"] for line in printed] == ["Answer: What is 1?", "Answer: What is 2?"]
    Path("saved.jsonl").write_text("")
    assert CliRunner().invoke(cli, ["db", "export", "--output", "saved.jsonl"]).exit_code == 0
    assert [json.loads(line)["row"]["id"] for line in Path("saved.jsonl").read_text().splitlines()] == [7, 8]


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, options: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(BatchFormatError, match=r"pyarrow, which is not installed: pip install 'batchray\[data\]'"):
        arrow.arrow()
    file = tmp_path / "t.csv"
    file.write_text("q\nx\n")
    with pytest.raises(BatchFormatError, match=r"tables are read with pyarrow, which is not installed"):
        batchray.run(file, [AGENT], input_column="q", **options)
    with pytest.raises(BatchFormatError, match="s3:// addresses are read with pyarrow"):
        batchray.run("s3://bucket/t.csv", [AGENT], input_column="q", **options)


def test_a_server_streams_the_rows_too(options: Any) -> None:
    job = batchray.run(TABLE, [AGENT], input_column="q", **options)
    with Store.open_for_reading(options["data_dir"]) as store:
        source = PageSource(store, store.jobs.get(job.id), ResultForm("lines", "index"))
        lines = source.page(START, is_final=True).text.splitlines()
    assert [json.loads(line)["row"]["q"] for line in lines] == TABLE["q"].to_pylist()
