"""Tables as batches: every form of one table gives the same requests and carries the same rows."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import zoneinfo
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchray.batch.formats.arrow import array_of
from batchray.batch.formats.carried import decode, encode, rows_of
from batchray.batch.formats.options import InputOptions
from batchray.batch.formats.recognize import Table, open_batch
from batchray.batch.formats.text_rows import object_rows
from batchray.batch.rules import KnownAgent
from batchray.batch.spool import RawRequest
from batchray.errors import BatchFormatError

AGENTS = {"a": KnownAgent("offline/rules", "offline"), "b": KnownAgent("openai/gpt-9", "openai")}
QUESTIONS = InputOptions(agent="a", input_column="question", id_column="id")
N_ROWS = 1003
TABLE = pa.table(
    {
        "id": pa.array(range(N_ROWS), pa.int64()),
        "question": [f"What is\n{i}, \"and\" 'why'?" for i in range(N_ROWS)],
        "score": [None if i % 5 == 0 else i / 7 for i in range(N_ROWS)],
        "is_easy": [i % 2 == 0 for i in range(N_ROWS)],
        "note": [f"ä{i}" if i % 3 == 0 else None for i in range(N_ROWS)],
        "only late": [None] * 1001 + [3, None],
        "code": [f"00{i}" for i in range(N_ROWS)],
    }
)


def read(source: Any, options: InputOptions, directory: Path) -> tuple[list[RawRequest], list[dict[str, Any]]]:
    """Return the requests of a table, and the rows that they carry."""
    batch = open_batch(source, AGENTS, directory, options)
    assert isinstance(batch, Table)
    requests: list[RawRequest] = []
    rows: list[dict[str, Any]] = []
    for part in batch.parts:
        assert part.first == len(requests)
        assert len(part.requests) <= 1000
        requests += part.requests
        rows += rows_of(decode(part.data))
    return requests, rows


def refusal(source: Any, options: InputOptions, directory: Path) -> str:
    with pytest.raises(BatchFormatError) as caught:
        read(source, options, directory)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


class RayLike:
    """The methods of a Ray Dataset that are used, without Ray: its parts may differ in the types of empty columns."""

    def __init__(self, *tables: pa.Table) -> None:
        self._tables = tables

    def iter_rows(self) -> Iterator[Any]:
        raise AssertionError("a Ray Dataset is read in batches")

    def iter_batches(self, batch_size: int, batch_format: str) -> Iterator[pa.Table]:
        assert (batch_size, batch_format) == (1000, "pyarrow")
        yield from self._tables


def _parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(TABLE, path / "t.parquet", row_group_size=100)
    return path / "t.parquet"


def _arrow(path: Path) -> Path:
    pyarrow.feather.write_feather(TABLE, path / "t.feather")
    return path / "t.feather"


def _arrow_stream() -> io.BytesIO:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return io.BytesIO(sink.getvalue())


def _csv(path: Path, separator: str = ",", name: str = "t.csv", encoding: str = "utf-8") -> Path:
    frame().to_csv(path / name, index=False, sep=separator, encoding=encoding)
    return path / name


def _file(path: Path, name: str, content: bytes) -> Path:
    (path / name).write_bytes(content)
    return path / name


def _saved_dataset(path: Path) -> Path:
    """A directory as `Dataset.save_to_disk` writes it."""
    with pa.OSFile(str(path / "data-00000-of-00002.arrow"), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as one:
        one.write_table(TABLE.slice(0, 400))
    with pa.OSFile(str(path / "data-00001-of-00002.arrow"), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as two:
        two.write_table(TABLE.slice(400))
    files = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in range(2)]
    (path / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "f", "_split": "train"}))
    return path


def _directory_of_parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(TABLE.slice(0, 500), path / "part-0.parquet")
    pyarrow.parquet.write_table(TABLE.slice(500), path / "part-1.parquet")
    (path / "_SUCCESS").write_text("")
    return path


def _dataset() -> Any:
    import datasets

    return datasets.Dataset(TABLE)


def _saved_by_datasets(path: Path) -> Path:
    import datasets

    datasets.disable_progress_bars()
    _dataset().save_to_disk(path / "saved", num_shards=2)
    return path / "saved"


def _in_memory(file: Path, name: str) -> str:
    """Return the address of a copy of a file in the memory of fsspec."""
    import fsspec

    fsspec.filesystem("memory").pipe(f"/{name}", file.read_bytes())
    return f"memory://{name}"


def frame() -> pd.DataFrame:
    made: pd.DataFrame = TABLE.to_pandas(integer_object_nulls=True)
    return made


def _lines() -> bytes:
    return b"\n\n".join(json.dumps(row).encode() for row in TABLE.to_pylist())


FORMS: dict[str, Callable[[Path], Any]] = {
    "parquet": _parquet,
    "parquet-gz": lambda path: _file(path, "t.parquet.gz", gzip.compress(_parquet(path).read_bytes())),
    "parquet-without-suffix": lambda path: _file(path, "t", _parquet(path).read_bytes()),
    "address-of-a-file": lambda path: _parquet(path).as_uri(),
    "open-file": lambda path: _parquet(path).open("rb"),
    "arrow-file": _arrow,
    "arrow-stream": lambda _: _arrow_stream(),
    "csv": _csv,
    "csv-with-byte-order-mark": lambda path: _csv(path, encoding="utf-8-sig"),
    "csv-in-utf-16": lambda path: _csv(path, encoding="utf-16"),
    "csv-in-utf-16-without-a-mark": lambda path: _csv(path, encoding="utf-16-be"),
    "csv-with-semicolons-gz": lambda path: _csv(path, ";", "t.csv.gz"),
    "tsv": lambda path: _csv(path, "\t", "t.tsv"),
    "jsonl": lambda path: _file(path, "t.jsonl", b"\xef\xbb\xbf" + _lines()),
    "jsonl-zst": lambda path: _file(path, "t.jsonl.zst", pa.compress(_lines(), "zstd", asbytes=True)),
    "json-array": lambda path: _file(path, "t.json", json.dumps(TABLE.to_pylist(), indent=1).encode()),
    "saved-dataset": _saved_dataset,
    "directory-of-parquet": _directory_of_parquet,
    "pyarrow-table": lambda _: TABLE,
    "pyarrow-batch": lambda _: TABLE.combine_chunks().to_batches()[0],
    "pyarrow-reader": lambda _: TABLE.to_reader(),
    "pandas": lambda _: frame(),
    "pandas-with-an-index": lambda _: frame().set_index("id"),
    "hugging-face-dataset": lambda _: _dataset(),
    "hugging-face-dataset-saved": lambda path: _saved_by_datasets(path),
    "hugging-face-iterable-dataset": lambda _: _dataset().to_iterable_dataset(),
    "fsspec-address": lambda path: _in_memory(_parquet(path), "tables/t.parquet"),
    "fsspec-directory": lambda path: _in_memory(_parquet(path), "many/t.parquet").rpartition("/")[0],
    "ray-dataset": lambda _: RayLike(
        TABLE.slice(0, 1000).set_column(5, "only late", pa.nulls(1000)), TABLE.slice(1000)
    ),
    "list-of-rows": lambda _: TABLE.to_pylist(),
    "iterator-of-rows": lambda _: iter(TABLE.to_pylist()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_gives_the_same_requests_and_rows(form: str, tmp_path: Path) -> None:
    source = FORMS[form](tmp_path)
    requests, rows = read(source, QUESTIONS, tmp_path / "spool")
    assert rows == TABLE.to_pylist()
    assert [json.loads(request.body) for request in requests] == [
        {"agent_id": "a", "custom_id": i, "input": row["question"]} for i, row in enumerate(rows)
    ]
    assert [request.custom_id for request in requests] == [str(i) for i in range(N_ROWS)]
    if hasattr(source, "close") and not isinstance(source, pa.RecordBatchReader):
        source.close()


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
TYPED: dict[str, tuple[Any, Any]] = {
    "int8": (pa.int8(), -3),
    "uint64": (pa.uint64(), 2**64 - 1),
    "float32": (pa.float32(), 0.5),
    "nan": (pa.float64(), float("inf")),
    "decimal": (pa.decimal128(20, 4), Decimal("12.3400")),
    "date": (pa.date32(), datetime.date(2026, 2, 28)),
    "zoned": (pa.timestamp("us", "Europe/Berlin"), datetime.datetime(2026, 3, 1, 12, 30, tzinfo=BERLIN)),
    "naive": (pa.timestamp("ms"), datetime.datetime(2026, 3, 1, 12, 30)),
    "nanoseconds": (pa.timestamp("ns"), pd.Timestamp(1_800_000_000_000_000_123)),
    "duration": (pa.duration("s"), datetime.timedelta(seconds=90)),
    "time": (pa.time32("s"), datetime.time(12, 30)),
    "binary": (pa.binary(), b"\x00\xff"),
    "list": (pa.list_(pa.int16()), [1, None, 3]),
    "struct": (pa.struct({"x": pa.int64(), "y": pa.list_(pa.string())}), {"x": 1, "y": ["z"]}),
    "map": (pa.map_(pa.string(), pa.int32()), [("k", 1)]),
    "category": (pa.dictionary(pa.int8(), pa.string()), "one"),
    "large": (pa.large_string(), "text"),
    "null": (pa.null(), None),
    "bool": (pa.bool_(), True),
}


def typed_table() -> pa.Table:
    return pa.table({name: pa.array([value, None], kind) for name, (kind, value) in TYPED.items()}).append_column(
        "q", pa.array(["one", "two"])
    )


def test_a_row_is_carried_in_the_types_that_it_came_in(tmp_path: Path) -> None:
    table = typed_table()
    batch = open_batch(table, AGENTS, tmp_path, InputOptions(agent="a", input_column="q"))
    assert isinstance(batch, Table)
    [part] = batch.parts
    stored = decode(part.data)
    assert stored.schema.equals(table.schema, check_metadata=True)
    assert pa.Table.from_batches([stored]).equals(table)
    assert rows_of(stored)[0] == {**{name: value for name, (_, value) in TYPED.items()}, "q": "one"}
    assert set(rows_of(stored)[1].values()) == {None, "two"}


_INT64 = st.integers(-(2**63), 2**63 - 1)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.one_of(
        *(
            st.tuples(st.lists(st.none() | values), st.just(kind))
            for values, kind in ((_TEXT, pa.string()), (_INT64, pa.int64()), (st.floats(), pa.float64()))
        )
    )
)
def test_an_array_of_values_is_the_one_that_pyarrow_makes(values_and_type: tuple[list[Any], pa.DataType]) -> None:
    made, expected = array_of(*values_and_type), pa.array(*values_and_type)
    made.validate(full=True)
    assert (made.type, made.null_count, repr(made.to_pylist())) == (
        expected.type,
        expected.null_count,
        repr(expected.to_pylist()),
    )


def test_a_part_holds_only_the_categories_that_occur_in_it() -> None:
    words = pa.array([f"word {i}" for i in range(5000)]).dictionary_encode()
    batch = pa.RecordBatch.from_arrays([words.slice(100, 3)], names=["word"])
    assert len(decode(encode(batch)).column(0).dictionary) == 3
    assert decode(encode(batch)).equals(batch) or rows_of(decode(encode(batch))) == batch.to_pylist()


NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
NESTED = VALUES.filter(lambda value: not isinstance(value, int) or abs(value) < 2**53) | st.lists(
    st.integers(0, 9) | st.text(max_size=2), max_size=3
)


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.sampled_from("xyz"), NESTED, max_size=3), min_size=1, max_size=8))
def test_rows_of_any_json_come_back_as_they_were(rows: list[dict[str, Any]]) -> None:
    directory = Path("/tmp")
    found = [row for part in object_rows(rows, directory) for row in rows_of(part.batch)]
    names = {name for row in rows for name in row}
    assert found == [{name: row.get(name) for name in found[0]} for row in rows] if names else found == []
    if names:
        assert set(found[0]) == names


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("1,-2,", [1, -2, None]),
        ("1,2.5,1e-07", [1.0, 2.5, 1e-07]),
        ("007,1,2", ["007", "1", "2"]),
        ("1.50,2,3", ["1.50", "2", "3"]),
        ("true,false,", [True, False, None]),
        ("True,False,True", [True, False, True]),
        ("true,False,x", ["true", "False", "x"]),
        ("1234567890123456789012,1,2", ["1234567890123456789012", "1", "2"]),
        ("nan,1,inf", ["nan", "1", "inf"]),
        ("2026-01-01,1,2", ["2026-01-01", "1", "2"]),
        (",,", [None, None, None]),
    ],
)
def test_csv_has_types_only_if_no_text_is_lost(values: str, expected: list[Any], tmp_path: Path) -> None:
    content = "q,v\n" + "".join(f"x,{value}\n" for value in values.split(","))
    file = _file(tmp_path, "t.csv", content.encode())
    _, rows = read(file, InputOptions(agent="a", input_column="q"), tmp_path)
    assert [row["v"] for row in rows] == expected
    assert [type(row["v"]) for row in rows] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, "a", pd.NA, pd.NaT, None], [1, "a", None, None, None]),
        ([pd.Timestamp(2026, 1, 1), "a"], ["2026-01-01T00:00:00", "a"]),
        ([datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1, 5)], ["2026-01-01", "2026-01-01T05:00:00"]),
        (
            [datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)],
            ["2026-01-01T00:00:00", "2026-01-01T00:00:00+00:00"],
        ),
        ([np.array([1.5, 2.5]), np.array([1.5])], [[1.5, 2.5], [1.5]]),
        ([{}, {}], [{}, {}]),
    ],
)
def test_values_of_python_come_back_unchanged(values: list[Any], expected: list[Any], tmp_path: Path) -> None:
    rows = [{"q": "x", "v": value} for value in values]
    for source in (rows, pd.DataFrame({"q": "x", "v": pd.Series(values, dtype=object)})):
        batch = open_batch(source, AGENTS, tmp_path, InputOptions(agent="a", input_column="q"))
        assert isinstance(batch, Table)
        carried = [decode(part.data) for part in batch.parts]
        assert [row["v"] for part in carried for row in rows_of(part)] == expected


def test_periods_of_a_frame_are_carried_as_texts(tmp_path: Path) -> None:
    periods = pd.Series([pd.Period("2024-01", "M"), pd.NaT], dtype="period[M]")
    frame = pd.DataFrame({"q": "x", "p": periods, "c": periods.astype("category")})
    for source in (frame, frame.set_index("p")):
        _, rows = read(source, InputOptions(agent="a", input_column="q"), tmp_path)
        assert [(row["p"], row["c"]) for row in rows] == [("2024-01", "2024-01"), (None, None)]


def test_nan_within_a_list_stays(tmp_path: Path) -> None:
    values = [[1.5, float("nan"), None], None, [2.5]]
    rows = [{"q": "x", "v": value} for value in values]
    for source in (rows, pd.DataFrame(rows)):
        _, carried = read(source, InputOptions(agent="a", input_column="q"), tmp_path)
        assert repr([row["v"] for row in carried]) == repr(values)


UNIONS = pa.UnionArray.from_dense(
    pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 1], pa.int32()), [pa.array([7, None]), pa.array(["z"])]
)


@pytest.mark.parametrize("is_untyped", [False, True])
def test_a_column_of_a_union_is_json(tmp_path: Path, is_untyped: bool) -> None:
    table = pa.table({"q": ["x", "y", "z"], "u": UNIONS})
    source = RayLike(table) if is_untyped else table
    batch = open_batch(source, AGENTS, tmp_path, InputOptions(agent="a", input_column="q"))
    assert isinstance(batch, Table)
    parts = [decode(part.data) for part in batch.parts]
    assert parts[0].schema.field("u").type == pa.string()
    assert [row["u"] for part in parts for row in rows_of(part)] == [7, "z", None]


def test_bytes_in_a_union_are_an_error(tmp_path: Path) -> None:
    kinds, values = pa.array([0, 1], pa.int8()), [pa.array([7]), pa.array([b"z"])]
    union = pa.UnionArray.from_dense(kinds, pa.array([0, 0], pa.int32()), values)
    table = pa.table({"q": ["x", "y"], "u": union})
    reason = "row 1: column 'u': a value of type bytes in a union cannot be kept"
    assert reason in refusal(table, InputOptions(agent="a", input_column="q"), tmp_path)


def test_a_time_that_python_has_no_value_for_is_a_text(tmp_path: Path) -> None:
    times = pa.array([300_000_000_000_000_000, None, 0], pa.timestamp("us"))
    table = pa.table({"q": ["x", "y", "z"], "t": times, "d": pa.array([5_000_000, None, 0], pa.date32())})
    _, rows = read(table, InputOptions(agent="a", input_column="q"), tmp_path)
    assert [row["t"] for row in rows] == ["11476-08-15 05:20:00.000000", None, datetime.datetime(1970, 1, 1)]
    assert [row["d"] for row in rows] == ["15659-07-15", None, datetime.date(1970, 1, 1)]


def test_texts_among_bytes_are_an_error(tmp_path: Path) -> None:
    rows = [{"q": "x", "v": "text"}, {"q": "x", "v": b"bytes"}]
    error = refusal(rows, InputOptions(agent="a", input_column="q"), tmp_path)
    assert error.startswith("row 1: column 'v': a value of type bytes among values of other types")


def test_a_column_that_is_the_index_too_is_one_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [7], "question": ["x"]}).set_index("id", drop=False)
    requests, rows = read(frame, QUESTIONS, tmp_path)
    assert json.loads(requests[0].body)["custom_id"] == 7
    assert rows == [{"id": 7, "question": "x"}]
    texts, _ = read(pd.Series(["one", "two"]), InputOptions(agent="a"), tmp_path)
    assert [json.loads(each.body)["input"] for each in texts] == ["one", "two"]


def test_csv_may_begin_with_blank_lines_and_quote_its_header(tmp_path: Path) -> None:
    file = _file(tmp_path, "t.csv", b'\n \n"question, in, words";n\nx;1\n')
    _, rows = read(file, InputOptions(agent="a", input_column="question, in, words"), tmp_path)
    assert rows == [{"question, in, words": "x", "n": 1}]


def asked(options: InputOptions, row: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return the request of one row."""
    [request], _ = read([row], options, directory)
    return dict(json.loads(request.body))


def test_a_prompt_is_a_template_of_columns(tmp_path: Path) -> None:
    row = {"my question": "why?", "n": 3, "price": 2.5, "meta": {"lang": "de"}, "a.b": "dot"}
    prompt = InputOptions(agent="a", prompt="{{{my question}}} {n:03d} {price:.2f} {meta[lang]!r} {a.b}")
    assert asked(prompt, row, tmp_path)["input"] == "{why?} 003 2.50 'de' dot"


def test_an_input_column_may_hold_messages_parts_or_numbers(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi", "name": None}]
    column = InputOptions(agent="a", input_column="x")
    without_null = [messages[0], {"role": "user", "content": "hi"}]
    assert asked(column, {"x": messages}, tmp_path) == {"agent_id": "a", "messages": without_null}
    assert asked(column, {"x": [{"type": "text", "text": "hi"}]}, tmp_path)["input"] == [{"type": "text", "text": "hi"}]
    assert asked(column, {"x": 5}, tmp_path)["input"] == "5"


def test_a_function_returns_an_input_or_a_whole_request(tmp_path: Path) -> None:
    def of(function: Callable[[dict[str, Any]], Any], agent: str | None = "a") -> dict[str, Any]:
        return asked(InputOptions(agent=agent, to_request=function), {"q": "hi", "n": 1}, tmp_path)

    assert of(lambda row: f"{row['q']}{row['n']}") == {"agent_id": "a", "input": "hi1"}
    assert of(lambda row: [{"role": "user", "content": row["q"]}])["messages"][0]["content"] == "hi"
    assert of(lambda row: {"agent_id": "b", "input": row["q"], "max_steps": 2}, None)["agent_id"] == "b"
    assert of(lambda row: {"input": row["q"], "custom_id": "c"}) == {"agent_id": "a", "input": "hi", "custom_id": "c"}


def test_rows_that_are_requests_need_no_mapping(tmp_path: Path) -> None:
    frame = pd.DataFrame([{"agent_id": "b", "input": "hi", "custom_id": 7, "label": "x"}])
    [request], [row] = read(frame, InputOptions(), tmp_path)
    assert json.loads(request.body) == {"agent_id": "b", "input": "hi", "custom_id": 7}
    assert row["label"] == "x"
    [request], _ = read(["hi", "there"][:1], InputOptions(agent="a"), tmp_path)
    assert json.loads(request.body) == {"agent_id": "a", "input": "hi"}


@pytest.mark.parametrize(
    ("first", "is_table"),
    [
        ({"id": 1, "q": "x"}, True),
        ({"question": "x"}, True),
        ({"agent_id": "a", "q": "x"}, True),
        ({"agent_id": "a", "question": "x"}, False),  # did you mean 'input'?
        ({"agentid": "a", "q": "x"}, False),
        ({"inptu": "x", "q": "y"}, False),
        ({"agent_id": "a"}, False),
        ({}, False),
    ],
)
def test_objects_with_keys_of_their_own_are_rows(first: dict[str, Any], is_table: bool, tmp_path: Path) -> None:
    found = open_batch([first], {"a": KnownAgent()}, tmp_path)
    assert isinstance(found, Table) == is_table
    with pytest.raises(BatchFormatError) as raised:
        list(found.parts if isinstance(found, Table) else found.requests)
    assert ("which column is the input?" in str(raised.value)) == is_table


def test_a_single_agent_need_not_be_named(tmp_path: Path) -> None:
    texts = open_batch(["x", "y"], {"only": KnownAgent()}, tmp_path)
    assert isinstance(texts, Table)
    assert [request.body for part in texts.parts for request in part.requests][1] == b'{"input":"y","agent_id":"only"}'
    batch = open_batch(TABLE, {"only": KnownAgent()}, tmp_path, InputOptions(input_column="question"))
    assert isinstance(batch, Table)
    assert {request.agent_id for part in batch.parts for request in part.requests} == {"only"}


BAD: dict[str, tuple[Any, InputOptions, str]] = {
    "no mapping": (
        TABLE,
        InputOptions(agent="a"),
        "which column is the input?  Name it (--input-column question, input_column=), or give a template",
    ),
    "no mapping of rows with agents": (
        [{"agent_id": "a", "q": "x"}],
        InputOptions(),
        'or give a template (--prompt "Answer: {q}", prompt=); the columns are: agent_id, q',
    ),
    "no agent": (TABLE, InputOptions(input_column="question"), "which agent answers the rows?"),
    "unknown agent": (TABLE, InputOptions(agent="c"), "there is no agent 'c'; known: a, b"),
    "misspelt column": (
        TABLE,
        InputOptions(agent="a", input_column="questoin"),
        "input_column: there is no column 'questoin'; did you mean 'question'? the columns are: id, question, score",
    ),
    "misspelt id": (TABLE, InputOptions(agent="a", input_column="note", id_column="idd"), "did you mean 'id'?"),
    "misspelt in a prompt": (
        TABLE,
        InputOptions(agent="a", prompt="{questio}"),
        "prompt: there is no column 'questio'",
    ),
    "bad braces": (TABLE, InputOptions(agent="a", prompt="{question"), "prompt: expected '}' before end of string"),
    "an attribute": (
        TABLE,
        InputOptions(agent="a", prompt="{question.__class__}"),
        "is an attribute of a value; write a",
    ),
    "an attribute of an item": (
        TABLE,
        InputOptions(agent="a", prompt="{question[0]._x}"),
        "is an attribute of a value",
    ),
    "a method": (TABLE, InputOptions(agent="a", prompt="{question.upper}"), "it is a method, not a value"),
    "no braces": (TABLE, InputOptions(agent="a", prompt="$question"), "prompt names no column; write one in braces"),
    "two inputs": (TABLE, InputOptions(agent="a", prompt="x", input_column="y"), "give only one of input_column and"),
    "null input": (TABLE, InputOptions(agent="a", input_column="note"), "row 1: column 'note': is empty (null)"),
    "null in a prompt": (TABLE, InputOptions(agent="a", prompt="{note}"), "row 1: column 'note': is empty (null)"),
    "bad spec": (TABLE, InputOptions(agent="a", prompt="{question:d}"), "row 0: column 'question': cannot be written"),
    "id of another type": (
        TABLE,
        InputOptions(agent="a", input_column="question", id_column="is_easy"),
        "row 0: column 'is_easy': an id is a text or an integer, not bool",
    ),
    "struct as an input": (
        [{"x": {"y": 1}}],
        InputOptions(agent="a", input_column="x"),
        "row 0: column 'x': an input is a text or a list of messages, not dict",
    ),
    "bad messages": (
        [{"x": [{"role": "user", "content": "hi"}]}, {"x": [{"role": "robot", "content": "hi"}]}],
        InputOptions(agent="a", input_column="x"),
        "row 1: messages[0].role: Input should be",
    ),
    "function that raises": (
        TABLE,
        InputOptions(agent="a", to_request=lambda row: row["nope"]),
        "row 0: <lambda> raised KeyError: 'nope'",
    ),
    "function that returns nothing": (
        TABLE,
        InputOptions(agent="a", to_request=lambda row: None),
        "row 0: <lambda> returns a text, messages or a request, not NoneType",
    ),
    "wrong row before one that cannot be read": (
        [{"input": "x"}, {"input": 3}, {"input": "x", "custom_id": 1.5}],
        InputOptions(agent="a"),
        "row 1: input",
    ),
    "row that is none": ([{"q": 1}, 5], InputOptions(agent="a", input_column="q"), "row 1: a row is a mapping"),
    "values that fit nowhere": (
        [{"q": "x", "v": 1}, {"q": "y", "v": {1, 2}}],
        InputOptions(agent="a", input_column="q"),
        "row 1: column 'v': a value of type set cannot be kept",
    ),
    "an integer beyond 64 bits": (
        [{"q": "x", "v": 2**70}],
        InputOptions(agent="a", input_column="q"),
        "row 0: column 'v': the integer 1180591620717411303424 is beyond 64 bits; give it as a text, because it cannot",
    ),
    "an integer of many digits in a list": (
        [{"q": "x", "v": [{"w": 10**9999}]}],
        InputOptions(agent="a", input_column="q"),
        "row 0: column 'v': the integer of 33,216 bits is beyond 64 bits",
    ),
    "an object": (
        [{"q": "x", "v": object()}],
        InputOptions(agent="a", input_column="q"),
        "row 0: column 'v': a value of type object cannot be kept",
    ),
    "a complex number in a frame": (
        pd.DataFrame({"q": ["x"], "v": [1j]}),
        InputOptions(agent="a", input_column="q"),
        "row 0: column 'v': a value of type complex cannot be kept",
    ),
    "texts and bytes in different parts": (
        [{"q": "x", "v": b"bytes"}] * 1000 + [{"q": "x", "v": "text"}],
        InputOptions(agent="a", input_column="q"),
        "row 0: column 'v': a value of type bytes among values of other types cannot be kept",
    ),
    "missing in a later part": (
        [{"q": "x", "v": "y"}] * 1000 + [{"q": "x"}],
        InputOptions(agent="a", prompt="{v[0]}"),
        "row 1000: column 'v': is missing, and the prompt needs it",
    ),
    "half a surrogate pair": (
        [{"q": "x"}, {"q": "\ud800"}],
        InputOptions(agent="a", input_column="q"),
        "row 1: column 'q': a value of type str with half of a surrogate pair cannot be kept",
    ),
    "texts": (
        ["x", "y"],
        InputOptions(),
        "which agent answers the rows?  Name it (--agent ID, agent=); there are: a, b",
    ),
    "two columns of one name": (
        pd.DataFrame([["a", "b"]], columns=["q", "q"]),
        InputOptions(agent="a", input_column="q"),
        "two columns are named 'q'",
    ),
    "no rows": (TABLE.slice(0, 0), QUESTIONS, "the batch is empty"),
    "unknown format": (TABLE, InputOptions(format="xls"), "unknown format 'xls'; there are: jsonl, json"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_table_that_cannot_be_used_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    source, options, reason = BAD[name]
    assert reason in refusal(source, options, tmp_path)


FILES: dict[str, tuple[str, bytes, str]] = {
    "csv row": ("t.csv", b'id,question\n1,"a\nb"\n2,c,d\n', "t.csv, line 4: has 3 cells, and the header 2"),
    "csv input": ("t.csv", b'id,question\n\n1,"a\nb"\n2,\n', "t.csv, line 5: column 'question': is empty (null)"),
    "csv short row": ("t.csv", b"id,question\n1\n", "t.csv, line 2: has 1 cell, and the header 2"),
    "csv with CR": ("t.csv", b"id,question\r1,a\r", "line 1: not CSV: lines end with CR alone; end them with LF"),
    "csv quote": ("t.csv", b'id,question\n1,"a\n', "t.csv, line 2: not CSV: unexpected end of data"),
    "csv latin-1": ("t.csv", b"id,question\n1,\xe4\n", "t.csv, line 2: not UTF-8: invalid continuation byte"),
    "csv empty": ("t.csv", b"", "t.csv: the batch is empty"),
    "csv header only": ("t.csv", b"id,question\n", "t.csv: the batch is empty"),
    "csv nameless": ("t.csv", b"id,,question\n1,2,3\n", "t.csv, line 1: column 2 of the header has no name"),
    "jsonl": ("t.jsonl", b'{"id":1,"question":"x"}\n\n{"id":2,"question":}\n', "t.jsonl, line 3: not JSON: "),
    "csv without a name": ("t", b"id,question\n1,2\n", "line 1: not JSON: unexpected character, expected a JSON value"),
    "jsonl list": ("t.jsonl", b'{"id":1,"question":"x"}\n[1]\n', "t.jsonl, line 2: a row is a JSON object, not list"),
    "jsonl null": ("t.jsonl", b'{"id":1,"question":"x"}\n{"id":2}\n', "t.jsonl, line 2: column 'question': is missing"),
    "jsonl key": (
        "t.jsonl",
        b'{"id":1,"question":"x"}\n{"question":null}\n',
        "line 2: column 'question': is empty (null)",
    ),
    "json": (
        "t.json",
        b'[{"id":1,"question":"x"},{"id":2}]',
        "t.json, row 1: column 'question': is missing, and it is",
    ),
    "parquet": ("t.parquet", b"PAR1....PAR1", "t.parquet: cannot be read as Parquet: "),
    "not parquet": ("t.parquet", b"id,question\n1,2\n", "t.parquet: cannot be read as Parquet: "),
    "arrow": ("t.arrow", b"ARROW1\0\0....", "t.arrow: cannot be read as Arrow: "),
    "zstd": ("t.csv.zst", pa.compress(b"id,question\n1,2\n" * 99, "zstd", asbytes=True)[:-9], "zst: the zstd data is"),
    "not gzip": ("t.csv.gz", b"\x8f\x02junk" * 200, "t.csv.gz: is named as gzip data, and is neither that nor text"),
    "not zstd": ("t.jsonl.zst", b"junk\0" * 200, "t.jsonl.zst: is named as zstd data, and is neither that nor text"),
    "gzip with latin-1": ("t.csv.gz", gzip.compress(b"id,question\n1,\xe4\n"), "t.csv.gz, line 2: not UTF-8: invalid"),
    "gzip": ("t.csv.gz", gzip.compress(b"id,question\n1,2\n" * 99)[:-9], "t.csv.gz: the gzip data is cut off"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_used_is_refused_with_its_name_and_line(name: str, tmp_path: Path) -> None:
    file, content, reason = FILES[name]
    error = refusal(_file(tmp_path, file, content), QUESTIONS, tmp_path / "spool")
    assert error.startswith(str(tmp_path))
    assert reason in error


def _parts(directory: Path, **columns: tuple[pa.Array, pa.Array]) -> Path:
    """Write a.parquet and b.parquet with the columns `q` and those given, each with the values in the two files."""
    directory.mkdir()
    for number, name in enumerate("ab"):
        own = {column: arrays[number] for column, arrays in columns.items() if arrays[number] is not None}
        n_rows = len(next(iter(own.values())))
        pyarrow.parquet.write_table(pa.table({"q": ["x"] * n_rows} | own), directory / f"{name}.parquet")
    return directory


def test_a_bad_row_of_a_directory_has_the_place_in_its_own_file(tmp_path: Path) -> None:
    one = InputOptions(agent="a", input_column="n")
    empty = _parts(tmp_path / "d", n=(pa.array(["x", "x"]), pa.array(["x", None])))
    assert (
        refusal(empty, one, tmp_path) == f"{empty}/b.parquet, row 1: column 'n': is empty (null), and it is the input"
    )
    broken = _parts(tmp_path / "e", n=(pa.array(["x"]), pa.array([b"\xff"]).view(pa.string())))
    assert refusal(broken, one, tmp_path).startswith(f"{broken}/b.parquet, row 0: column 'n': cannot be read: Invalid")
    by_id = InputOptions(agent="a", input_column="q", id_column="n")
    wrong_id = _parts(tmp_path / "f", n=(pa.array([1, 2]), pa.array([1, 2.5])))
    assert f"{wrong_id}/b.parquet, row 1: column 'n': an id is" in refusal(wrong_id, by_id, tmp_path)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"n": (pa.array(["7"]), pa.array([7]))}, "'n': has type int64, and string in a.parquet; write all files with"),
        ({"n": (pa.array([7]), pa.array(["7"]))}, "'n': has type string, and int64 in a.parquet; write all files with"),
        ({"n": (pa.array([7]), pa.array([True]))}, "'n': has type bool, and int64 in a.parquet; write all files with"),
        ({"n": (pa.array(["x"]), pa.array([b"y"]))}, "'n': has type binary, and string in a.parquet; write all files"),
        ({"n": (pa.array([["x"]]), pa.array([[b"y"]]))}, "'n': has type list<element: binary>, and list<element: s"),
        ({"n": (pa.array([Decimal("1.5")]), pa.array([0.5]))}, "'n': has type double, and decimal128(2, 1) in a.parqu"),
        ({"n": (pa.array([2**53 + 1]), pa.array([0.5]))}, "'n': has type int64, and other files double: Integer value"),
        ({"m": (pa.array([1]), None), "n": (pa.array([1]), pa.array([1]))}, "'m': is missing, and it is in a.parquet;"),
        ({"m": (None, pa.array([1])), "n": (pa.array([1]), pa.array([1]))}, "'m': is not in a.parquet; give all files"),
    ],
)
def test_files_of_a_directory_with_different_columns_are_refused(
    columns: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    error = refusal(_parts(tmp_path / "d", **columns), InputOptions(agent="a", input_column="q"), tmp_path)
    assert f".parquet: column {reason}" in error.replace("a.parquet, row 0: ", "a.parquet: ")


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ((pa.array([1], pa.int32()), pa.array([2**40])), pa.array([1, 2**40])),
        ((pa.array([2**40]), pa.array([1], pa.int32())), pa.array([2**40, 1])),
        ((pa.nulls(1), pa.array(["x"])), pa.array([None, "x"])),
        ((pa.array(["x"]), pa.nulls(1)), pa.array(["x", None])),
        ((pa.array(["x"]), pa.array(["y"]).dictionary_encode()), pa.array(["x", "y"])),
        ((pa.array([{"k": 1}]), pa.nulls(1)), pa.array([{"k": 1}, None])),
    ],
)
def test_types_of_the_files_of_a_directory_are_promoted_if_no_value_changes(
    arrays: tuple[pa.Array, pa.Array], expected: pa.Array, tmp_path: Path
) -> None:
    directory = _parts(tmp_path / "d", n=arrays)
    batch = open_batch(directory, AGENTS, tmp_path, InputOptions(agent="a", input_column="q"))
    assert isinstance(batch, Table)
    carried = [decode(part.data).column("n") for part in batch.parts]
    assert pa.chunked_array(carried).equals(pa.chunked_array([expected]))


def test_a_file_without_rows_in_a_directory_needs_no_columns(tmp_path: Path) -> None:
    directory = _parts(tmp_path / "d", n=(pa.array([1]), pa.array([2])))
    pyarrow.parquet.write_table(pa.table({"other": pa.array([], pa.string())}), directory / "0.parquet")
    _, rows = read(directory, InputOptions(agent="a", input_column="q"), tmp_path)
    assert [row["n"] for row in rows] == [1, 2]
    for name in "ab":
        (directory / f"{name}.parquet").unlink()
    assert "the batch is empty" in refusal(directory, InputOptions(agent="a", input_column="q"), tmp_path)


def test_a_text_that_is_named_as_packed_is_read(tmp_path: Path) -> None:
    text = "id,question\n1," + "ä" * 2000 + "\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        _, [row] = read(_file(tmp_path, "t.csv.gz", text.encode(encoding)), QUESTIONS, tmp_path)
        assert row == {"id": 1, "question": "ä" * 2000}


def test_a_dataset_of_several_splits_is_refused(tmp_path: Path) -> None:
    import datasets

    both = datasets.DatasetDict(train=_dataset(), test=_dataset())
    assert "pass one, such as dataset['train']" in refusal(both, QUESTIONS, tmp_path)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("memory://nowhere.csv", "memory://nowhere.csv: there is no such file"),
        ("weird://user:secret@host/t.csv?key=secret", "weird://host/t.csv: cannot be read: Protocol not known: weird"),
        ("gs://", "gs://: the address names no file"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_its_secrets(
    address: str, reason: str, tmp_path: Path
) -> None:
    error = refusal(address, QUESTIONS, tmp_path)
    assert error.startswith(reason)
    assert "secret" not in error


def test_a_directory_that_is_not_a_table_is_refused(tmp_path: Path) -> None:
    assert "without Parquet files" in refusal(tmp_path, QUESTIONS, tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "name the directory of one: train, test" in refusal(tmp_path, QUESTIONS, tmp_path)
    assert "cannot be read: No such file" in refusal(tmp_path / "none.csv", QUESTIONS, tmp_path)
    assert "is parquet, not csv" in refusal(_parquet(tmp_path), InputOptions(format="csv"), tmp_path)


def test_a_carried_text_that_is_not_utf8_is_refused_before_anything_runs(tmp_path: Path) -> None:
    table = pa.table({"question": ["x", "y"], "note": pa.array([b"ok", b"\xff"]).view(pa.string())})
    with pytest.raises(BatchFormatError, match=r"column 'note': cannot be read: Invalid UTF8"):
        read(table, InputOptions(agent="a", input_column="question"), tmp_path)
