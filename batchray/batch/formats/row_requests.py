"""Makes requests of the rows of a table."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from decimal import Decimal
from typing import Any, NamedTuple

from batchray.batch.formats.carried import encode, rows_of, values_of
from batchray.batch.formats.column_types import Rows
from batchray.batch.formats.options import InputOptions
from batchray.batch.formats.prompts import Prompt, listed, missing_column
from batchray.batch.parse import object_body, parse_bodies
from batchray.batch.rules import RequestRules
from batchray.batch.spool import RawRequest
from batchray.errors import BatchFormatError, EmptyBatchError
from batchray.schema import AgentRequest

_REQUEST_FIELDS = frozenset(AgentRequest.model_fields) | {"system"}
_USUAL_INPUTS = ("question", "prompt", "input", "text", "query", "instruction", "problem", "content", "messages")


class TablePart(NamedTuple):
    """Requests, and the rows that they were made of, as they are stored."""

    requests: Sequence[RawRequest]
    first: int
    data: bytes


def table_parts(rows: Generator[Rows], options: InputOptions, rules: RequestRules) -> Generator[TablePart]:
    """Yield the requests of a table with the rows that they carry.  Raises BatchFormatError with row and column."""
    made: _Rows | None = None
    with closing(rows):
        for part in rows:
            made = made or _Rows(part.batch.schema.names, options, rules)
            _check_values(part)
            if part.batch.num_rows:
                yield TablePart(made.requests(part), part.first, encode(part.batch))
    if made is None:
        raise EmptyBatchError("the batch is empty")


def _check_values(part: Rows) -> None:
    """Raise BatchFormatError for a column whose values its type cannot have, which would end the reading of results."""
    for name, column in zip(part.batch.schema.names, part.batch.columns, strict=True):
        try:
            column.validate(full=True)
        except ValueError as error:  # pyarrow's own, which is one
            reason = " ".join(str(error).split())[:200]
            error_of_column = BatchFormatError(f"cannot be read: {reason}", path=f"column {name!r}")
            raise part.placed(error_of_column, 0) from None


class _Rows:
    """Makes requests of the rows of a table with these columns."""

    def __init__(self, columns: Sequence[str], options: InputOptions, rules: RequestRules) -> None:
        self._columns, self._options, self._rules = columns, options, rules
        for option in ("input_column", "id_column"):
            name = getattr(options, option)
            if name is not None and name not in columns:
                raise missing_column(name, columns, option)
        self._agent = self._only_agent()
        self._prompt = None if options.prompt is None else Prompt(options.prompt, columns)
        self._fields = [] if options.maps_rows and self._has_input else self._request_columns()
        self._id_column = options.id_column or ("custom_id" if "custom_id" in columns else None)
        self._agent_column = "agent_id" if self._agent is None else None
        self._make = self._maker()
        self._needed = self._needed_columns()

    @property
    def _has_input(self) -> bool:
        return bool(self._options.given & {"input_column", "prompt", "to_request"})

    def _only_agent(self) -> str | None:
        """Return the agent of all rows; None if each names its own."""
        if self._options.agent is not None or "agent_id" in self._columns:
            return self._options.agent
        if len(self._rules.agents) == 1:
            return next(iter(self._rules.agents))
        if self._options.to_request is not None:
            return None
        known = ", ".join(sorted(self._rules.agents)[:5])
        raise BatchFormatError(f"which agent answers the rows?  Name it (--agent ID, agent=); there are: {known}")

    def _request_columns(self) -> list[str]:
        """Return the columns that are fields of a request, of a table whose rows are requests."""
        if not {"input", "messages"}.isdisjoint(self._columns):
            return [name for name in self._columns if name in _REQUEST_FIELDS]
        usual = next((name for name in self._columns if name.lower() in _USUAL_INPUTS), "question")
        name = usual if usual in self._columns else "NAME"
        other = next((column for column in self._columns if column not in _REQUEST_FIELDS), self._columns[0])
        prompt = f'"Answer: {{{usual if usual in self._columns else other}}}"'
        how = f"Name it (--input-column {name}, input_column=), or give a template (--prompt {prompt}, prompt=)"
        raise BatchFormatError(f"which column is the input?  {how}; the columns are: {listed(self._columns)}")

    def _maker(self) -> Callable[[dict[str, Any]], Any]:
        """Return the function that makes a row's fields of a request, besides its agent and its id."""
        if (column := self._options.input_column) is not None:
            return lambda row: _input_fields(row[column], column)
        if (prompt := self._prompt) is not None:
            return lambda row: {"input": prompt.of(row)}
        if (function := self._options.to_request) is not None:
            return lambda row: _returned_fields(function, row)
        return lambda row: {name: _without_nulls(row[name]) for name in self._fields if row[name] is not None}

    def _needed_columns(self) -> list[str]:
        """Return the columns whose values are needed as Python values."""
        if self._options.to_request is not None:
            return list(self._columns)
        used = [self._options.input_column, self._id_column, self._agent_column, "metadata"]
        names = [*self._fields, *(self._prompt.columns if self._prompt else ()), *filter(None, used)]
        return list(dict.fromkeys(name for name in names if name in self._columns))

    def requests(self, part: Rows) -> list[RawRequest]:
        """Return the requests of a part of the table."""
        bodies: list[bytes] = []
        try:
            for row in self._values(part):
                self._check_presence(part, len(bodies))
                bodies.append(self._body(row))  # an error needs those before it
        except BatchFormatError as error:
            self._parsed(bodies, part)  # an error of an earlier row comes first
            raise part.placed(error, len(bodies)) from None
        return self._parsed(bodies, part)

    def _check_presence(self, part: Rows, position: int) -> None:
        """Raise BatchFormatError for a row that came without a column that its input is made of."""
        if not part.missing:
            return
        column = self._options.input_column
        columns, use = ([] if column is None else [column], "it is the input")
        if self._prompt is not None:
            columns, use = (self._prompt.columns, "the prompt needs it")
        for name in columns:
            if position in part.missing.get(name, ()):
                raise BatchFormatError(f"is missing, and {use}", path=f"column {name!r}")

    def _parsed(self, bodies: Sequence[bytes], part: Rows) -> list[RawRequest]:
        made: list[RawRequest] = []
        try:
            for request in parse_bodies(bodies, self._rules):
                made.append(request)  # noqa: PERF402  # an error needs those before it
        except BatchFormatError as error:
            raise part.placed(error, len(made)) from None
        return made

    def _values(self, part: Rows) -> Iterator[dict[str, Any]]:
        """Yield the needed values of each row."""
        needed = part.batch.select(self._needed)
        try:
            if needed.num_columns == len(part.batch.schema.names):
                return iter(rows_of(needed))
            columns = [values_of(column, field) for column, field in zip(needed.columns, needed.schema, strict=True)]
        except UnicodeDecodeError as error:
            raise part.placed(BatchFormatError(f"a text is not UTF-8: {error.reason}"), 0) from None
        if not columns:
            return ({} for _ in range(part.batch.num_rows))
        return (dict(zip(self._needed, values, strict=True)) for values in zip(*columns, strict=True))

    def _body(self, row: dict[str, Any]) -> bytes:
        agent_id = self._agent if self._agent_column is None else row.get(self._agent_column)
        fields = {} if agent_id is None else {"agent_id": agent_id}
        if isinstance(metadata := row.get("metadata"), Mapping):
            fields["metadata"] = _without_nulls(metadata)
        if self._id_column is not None and (custom_id := _custom_id(row[self._id_column], self._id_column)) is not None:
            fields["custom_id"] = custom_id
        given = self._make(row)
        if not isinstance(given, dict):  # a whole request, as its own class
            return object_body(given, self._rules)
        fields = {**given, **fields} if self._fields else {**fields, **given}
        return object_body(fields, self._rules)


def _custom_id(value: Any, column: str) -> str | int | None:
    if isinstance(value, float) and value.is_integer():  # integers of a frame in which some are missing
        return int(value)
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    reason = f"an id is a text or an integer, not {type(value).__name__}"
    raise BatchFormatError(reason, path=f"column {column!r}")


def _input_fields(value: Any, column: str) -> dict[str, Any]:
    """Return the fields of a request whose input is a value of a column: a text, a number, or messages."""
    match value:
        case str():
            return {"input": value}
        case None:
            raise BatchFormatError("is empty (null), and it is the input", path=f"column {column!r}")
        case [{"role": _}, *_]:
            return {"messages": _without_nulls(value)}
        case [{"type": _}, *_] | [{"text": _}, *_]:
            return {"input": _without_nulls(value)}
        case bool() | int() | float() | Decimal() | datetime.date() | datetime.time():
            return {"input": str(value)}
    reason = f"an input is a text or a list of messages, not {type(value).__name__}; prompt or to_request can write it"
    raise BatchFormatError(reason, path=f"column {column!r}")


def _returned_fields(function: Callable[[dict[str, Any]], Any], row: dict[str, Any]) -> Any:
    """Return the fields of a request that the caller's function made of a row."""
    name = getattr(function, "__name__", "to_request")
    try:
        made = function(row)
    except Exception as error:  # it is the caller's code
        raise BatchFormatError(f"{name} raised {type(error).__name__}: {str(error)[:200]}") from error
    if isinstance(made, str | list):
        return _input_fields(made, name)
    if isinstance(made, Mapping):
        return dict(made)
    if isinstance(made, AgentRequest):
        return made
    raise BatchFormatError(f"{name} returns a text, messages or a request, not {type(made).__name__}")


def _without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null: a struct of Arrow has all keys in each row."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
