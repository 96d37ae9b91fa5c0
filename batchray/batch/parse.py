"""Reads a batch from bytes, lines or Python objects; yields validated requests, or an error with its position.

The parsed batch is never in memory as a whole: lines are read one by one, and a whole body is a file mapped into
memory, of which requests are slices.
"""

from __future__ import annotations

import itertools
import mmap
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from io import BufferedReader, FileIO, IOBase, TextIOBase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec
import orjson
from pydantic import BaseModel, ValidationError

from batchray.batch.fast_path import parse_simple_requests
from batchray.batch.rules import RequestRules
from batchray.batch.source import BOM, open_file, open_stream, readable, remedy
from batchray.batch.spool import RawRequest
from batchray.batch.strict_json import MAX_DEPTH, refuse_duplicate_members, request_index_at, strict_json
from batchray.errors import BatchFormatError, EmptyBatchError
from batchray.schema import AgentRequest, CreateBatch
from batchray.schema.validation_text import request_problem

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""The largest request: no provider that we know of takes a larger body (Anthropic documents 32 MB)."""

Buffer = mmap.mmap | bytes | memoryview

# How many small requests of a body are validated together.
_GROUP, _GROUP_BYTES = 500, 1024 * 1024


class Batch(NamedTuple):
    """A batch that can be iterated once: its requests, and the caller's callback URL.

    `unused` names fields of Letta's API in the requests that have no effect here.  It is complete when all requests
    have been read, and empty if such fields are refused.
    """

    requests: Iterator[RawRequest]
    callback_url: str | None = None
    unused: Set[str] = frozenset()


def read_batch(source: Path | BinaryIO | Iterable[Any], agents: Iterable[str]) -> Batch:
    """Return the batch in `source`; requests are validated during iteration.

    `source` is a path (JSON Lines, a JSON array of requests, or JSON with the whole `{"requests": [...]}` body), an
    open binary file, or an iterable of requests (mappings or AgentRequest).  Files are in UTF-8 or UTF-16, and may be
    compressed with gzip.  `agents` are the ids that requests may name.
    Raises BatchFormatError, here or during iteration, with the line or index.
    """
    rules = RequestRules(agents)
    if isinstance(source, Path):
        return _from_stream(
            open_file(source), rules, is_lines=".jsonl" in source.suffixes or ".ndjson" in source.suffixes
        )
    if isinstance(source, TextIOBase):
        raise BatchFormatError("an open file must be open in binary mode")
    if isinstance(source, IOBase):
        return _from_stream(open_stream(cast(BinaryIO, source)), rules, is_lines=False)
    return Batch(_refuse_empty(_from_objects(source, rules)))


def read_body(buffer: mmap.mmap | bytes, agents: Iterable[str]) -> Batch:
    """Return the batch in a whole `{"requests": [...]}` body.  See `read_batch`."""
    return _from_buffer(buffer, RequestRules(agents, accepts_unused=True), accepts_array=False)


def parse_request(raw: bytes | memoryview, rules: RequestRules) -> RawRequest:
    """Validate one request's JSON.  Raises BatchFormatError without a position; the caller adds it."""
    if len(raw) > MAX_REQUEST_BYTES:
        raise BatchFormatError(f"a request of more than {MAX_REQUEST_BYTES >> 20} MiB")
    body = bytes(raw)
    if ids := parse_simple_requests([body], rules.agents):
        return RawRequest(*ids[0], body)
    return _validate(strict_json(body), body, rules)


def _from_stream(stream: BinaryIO, rules: RequestRules, *, is_lines: bool) -> Batch:
    blank: list[bytes] = []
    try:
        with readable():
            while (first := stream.readline(MAX_REQUEST_BYTES + 1)) and not first.removeprefix(BOM).strip():
                blank.append(first)
    except BaseException:
        stream.close()
        raise
    if _is_request_line(first.removeprefix(BOM), is_lines):
        return Batch(_refuse_empty(_from_lines(stream, [*blank, first], rules)))
    return _from_body(stream, b"".join(blank) + first, rules)


def _is_request_line(first: bytes, is_lines: bool) -> bool:
    """Return whether a first line is one request of JSON Lines, not the start of a whole batch.

    `is_lines` is whether the name of the file says so, for a line that cannot be read.
    """
    try:
        value = orjson.loads(first)
    except orjson.JSONDecodeError:
        if not first.lstrip().startswith((b"{", b"[")) or first.lstrip().startswith(b"{'"):
            return True
        is_start = first.lstrip().startswith(b"[") or first.strip() == b"{" or b'"requests"' in first
        return not is_start and (is_lines or b'"agent_id"' in first)
    return not (isinstance(value, dict) and "requests" in value) and not isinstance(value, list)


def _from_lines(stream: BinaryIO, first: Sequence[bytes], rules: RequestRules) -> Iterator[RawRequest]:
    rest = iter(lambda: stream.readline(MAX_REQUEST_BYTES + 1), b"")
    with stream, readable():
        for number, line in enumerate(itertools.chain(first, rest), start=1):
            line = line.removeprefix(BOM)  # of the file, or of one that was appended
            if line.isspace() or line.strip() in (b"", b"\x1a"):  # Ctrl-Z: the end of a text of DOS
                continue
            try:
                yield parse_request(line.rstrip(b"\r\n"), rules)
            except BatchFormatError as error:
                reason = error.reason + remedy(line.rstrip(b"\r\n"), error.reason, number)
                raise type(error)(reason, number, None, error.path) from None


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    requests: list[msgspec.Raw]
    callback_url: str | None = None


def _from_body(stream: BinaryIO, first: bytes, rules: RequestRules) -> Batch:
    """Read a whole body; a file is mapped, so that the kernel reads its pages when they are needed."""
    with stream, readable():
        return _from_buffer(_mapped(stream) or first + stream.read(), rules, accepts_array=True)


def _from_buffer(buffer: Buffer, rules: RequestRules, *, accepts_array: bool) -> Batch:
    """Split a whole body into its requests."""
    if buffer[: len(BOM)] == BOM:
        buffer = memoryview(buffer)[len(BOM) :]
    try:
        body = msgspec.json.decode(buffer, type=_Body | list[msgspec.Raw] if accepts_array else _Body)
    except msgspec.ValidationError as error:
        raise _no_batch(buffer, str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _body_error(buffer, error) from None
    if isinstance(body, list):
        return Batch(_refuse_empty(_from_raw_requests(body, rules)))
    names = re.findall(rb'"(requests|callback_url)"\s*:', buffer)
    if len(names) > len(set(names)):  # a duplicate in the body, or a member of a request
        refuse_duplicate_members(buffer)
    callback_url = None if body.callback_url is None else read_callback_url(body.callback_url)
    return Batch(_refuse_empty(_from_raw_requests(body.requests, rules)), callback_url, rules.unused)


def _mapped(stream: BinaryIO) -> mmap.mmap | None:
    if not (isinstance(stream, BufferedReader) and isinstance(stream.raw, FileIO)):
        return None  # the file descriptor of, say, a compressed file has other bytes
    try:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # a pipe, or an empty file
        return None


def _no_batch(buffer: Buffer, problem: str) -> BatchFormatError:
    """Return why a JSON document is not a batch."""
    if problem.startswith("Object ") and not re.search(rb'"requests"\s*:', buffer):
        return BatchFormatError('not a batch: one JSON object; write a request on one line, or {"requests": [...]}')
    if found := re.search("unknown field `(.{1,60})`", problem):
        return BatchFormatError(f"unknown key {found[1]!r} in the body; it has `requests` and `callback_url`")
    return BatchFormatError(f'not a batch: {problem[0].lower()}{problem[1:]}; a batch is {{"requests": [...]}}')


def _body_error(buffer: Buffer, error: Exception) -> BatchFormatError:
    """Return why a body cannot be split into requests, with the index of the bad request."""
    byte = re.search(r"\(byte (\d+)\)$", str(error))
    index = (
        request_index_at(buffer, int(byte[1]) if byte else len(buffer))
        if byte or isinstance(error, RecursionError)
        else None
    )
    if index is None:
        return BatchFormatError(f"neither JSON Lines nor a JSON batch: {error}")
    if isinstance(error, RecursionError):
        return BatchFormatError(f"nested deeper than {MAX_DEPTH} levels", index=index)
    return BatchFormatError(f"not JSON: {str(error).removeprefix('JSON is malformed: ')}", index=index)


def _from_raw_requests(slices: Sequence[msgspec.Raw], rules: RequestRules) -> Iterator[RawRequest]:
    for start in range(0, len(slices), _GROUP):
        group = slices[start : start + _GROUP]
        ids = parse_simple_requests(group, rules.agents) if sum(map(len, group)) <= _GROUP_BYTES else None
        if ids is not None:
            yield from (RawRequest(*head, bytes(raw)) for head, raw in zip(ids, group, strict=True))
        else:
            yield from _one_by_one(group, start, rules)


def _one_by_one(slices: Sequence[msgspec.Raw], start: int, rules: RequestRules) -> Iterator[RawRequest]:
    for index, raw in enumerate(slices, start):
        try:
            yield parse_request(memoryview(raw), rules)
        except BatchFormatError as error:
            raise error.at(index=index) from None


def _from_objects(requests: Iterable[Any], rules: RequestRules) -> Iterator[RawRequest]:
    if hasattr(requests, "to_dict"):
        raise BatchFormatError(f"not a {type(requests).__name__}; pass its rows: frame.to_dict('records')")
    if isinstance(requests, Mapping):
        raise BatchFormatError("a batch is a list of requests, not a mapping; put the request into a list")
    if not isinstance(requests, Iterable) or isinstance(requests, bytes | bytearray | memoryview):
        raise BatchFormatError(f"a batch is a path, an open file or an iterable, not {type(requests).__name__}")
    for index, request in enumerate(requests):
        try:
            yield object_request(request, rules)
        except BatchFormatError as error:
            raise error.at(index=index) from None


def object_request(request: Any, rules: RequestRules) -> RawRequest:
    """Validate one request given as a mapping or an AgentRequest."""
    if isinstance(request, BaseModel):
        value = request.model_dump(mode="json", exclude_unset=True)
    elif isinstance(request, Mapping):
        value = dict(request)
    else:
        raise BatchFormatError(f"a request is a mapping or an AgentRequest, not {type(request).__name__}")
    try:
        body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise BatchFormatError(f"cannot be written as JSON: {error}") from None
    return parse_request(body, rules)  # the validated bytes are the stored bytes


def _validate(value: Any, body: bytes, rules: RequestRules) -> RawRequest:
    if not isinstance(value, dict):
        raise BatchFormatError(f"a request is a JSON object, not {type(value).__name__}")
    rules.check_keys(value)  # first: a misspelt key often leaves another one missing
    try:
        request = AgentRequest.model_validate_json(body, strict=True)  # strict: "3" is not a number, 1 is not true
    except ValidationError as error:
        raise format_error(error) from None
    rules.check_agent(request.agent_id)
    return RawRequest(request.agent_id, request.custom_id, body)


def _refuse_empty(requests: Iterator[RawRequest]) -> Iterator[RawRequest]:
    first = next(requests, None)
    if first is None:
        raise EmptyBatchError("the batch is empty")
    yield first
    yield from requests


def read_callback_url(url: str) -> str:
    """Return an http or https URL in normal form.  Raises BatchFormatError for anything else."""
    try:
        return CreateBatch.model_validate({"requests": [], "callback_url": url}).callback_url or url
    except ValidationError as error:
        raise format_error(error) from None


def format_error(error: ValidationError) -> BatchFormatError:
    """Return the first problem of a request as an error."""
    path, reason = request_problem(error)
    return BatchFormatError(reason, path=path)
