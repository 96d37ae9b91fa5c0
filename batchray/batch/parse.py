"""Reads a batch from bytes, lines or Python objects; yields validated requests, or an error with its position.

The parsed batch is never in memory as a whole, see `split`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from io import IOBase, TextIOBase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec
import orjson
from pydantic import BaseModel, ValidationError

from batchray.batch.fast_path import id_text, parse_simple_requests
from batchray.batch.rules import RequestRules
from batchray.batch.source import open_file, open_stream, remedy
from batchray.batch.split import (
    MAX_REQUEST_BYTES,
    Buffer,
    JsonDocument,
    Lines,
    format_error,
    split_body,
    split_stream,
)
from batchray.batch.spool import RawRequest
from batchray.batch.strict_json import strict_json
from batchray.errors import BatchFormatError, EmptyBatchError
from batchray.schema import AgentRequest

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
        is_lines = ".jsonl" in source.suffixes or ".ndjson" in source.suffixes
        return batch_of(split_stream(open_file(source), is_lines=is_lines), rules)
    if isinstance(source, TextIOBase):
        raise BatchFormatError("an open file must be open in binary mode")
    if isinstance(source, IOBase):
        return batch_of(split_stream(open_stream(cast(BinaryIO, source)), is_lines=False), rules)
    return batch_of(source, rules)


def batch_of(found: Lines | JsonDocument | Iterable[Any], rules: RequestRules) -> Batch:
    """Return the batch in lines, in a document, or in an iterable of requests."""
    if isinstance(found, Lines):
        return Batch(_refuse_empty(_from_lines(found, rules)), unused=rules.unused)
    if isinstance(found, JsonDocument):
        return Batch(_refuse_empty(_from_raw_requests(found.requests, rules)), found.callback_url, rules.unused)
    return Batch(_refuse_empty(_from_objects(found, rules)), unused=rules.unused)


def read_body(buffer: Buffer, agents: Iterable[str]) -> Batch:
    """Return the batch in a whole `{"requests": [...]}` body.  See `read_batch`."""
    return batch_of(split_body(buffer, accepts_array=False), RequestRules(agents, accepts_unused=True))


def parse_request(raw: bytes | memoryview, rules: RequestRules) -> RawRequest:
    """Validate one request's JSON.  Raises BatchFormatError without a position; the caller adds it."""
    _check_size(raw)
    body = bytes(raw)
    if rules.convert is not None:
        body = orjson.dumps(rules.convert(strict_json(body)))
    return _parsed(body, rules)


def _check_size(raw: bytes | memoryview) -> None:
    if len(raw) > MAX_REQUEST_BYTES:
        raise BatchFormatError(f"a request of more than {MAX_REQUEST_BYTES >> 20} MiB")


def _parsed(body: bytes, rules: RequestRules) -> RawRequest:
    if ids := parse_simple_requests([body], rules.agents):
        return RawRequest(*ids[0], body)
    return _validate(strict_json(body), body, rules)


def _from_lines(lines: Lines, rules: RequestRules) -> Iterator[RawRequest]:
    with closing(lines.numbered):
        for number, line in lines.numbered:
            try:
                yield parse_request(line, rules)
            except BatchFormatError as error:
                reason = error.reason + remedy(line, error.reason, number)
                raise type(error)(reason, number, None, error.path) from None


def _from_raw_requests(slices: Sequence[msgspec.Raw], rules: RequestRules) -> Iterator[RawRequest]:
    for start in range(0, len(slices), _GROUP):
        group = slices[start : start + _GROUP]
        is_small = rules.convert is None and sum(map(len, group)) <= _GROUP_BYTES
        ids = parse_simple_requests(group, rules.agents) if is_small else None
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
    """Validate one request given as a mapping or an AgentRequest, or one entry of another API's batch."""
    return _parsed(object_body(request, rules), rules)  # the validated bytes are the stored bytes


def parse_bodies(bodies: Sequence[bytes], rules: RequestRules) -> Iterator[RawRequest]:
    """Validate requests that `object_body` returned, together if they are simple."""
    if ids := parse_simple_requests(bodies, rules.agents):
        return (RawRequest(*of_one, body) for of_one, body in zip(ids, bodies, strict=True))
    return (_parsed(body, rules) for body in bodies)


def object_body(request: Any, rules: RequestRules) -> bytes:
    """Return the JSON of a request given as an object, which is not validated yet."""
    if isinstance(request, BaseModel):
        value = request.model_dump(mode="json", exclude_unset=True)
    elif isinstance(request, Mapping):
        value = dict(request)
    else:
        raise BatchFormatError(f"a request is a mapping or an AgentRequest, not {type(request).__name__}")
    if rules.convert is not None:
        value = rules.convert(value)
    try:
        body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise BatchFormatError(f"cannot be written as JSON: {error}") from None
    _check_size(body)
    return body


def _validate(value: Any, body: bytes, rules: RequestRules) -> RawRequest:
    if not isinstance(value, dict):
        raise BatchFormatError(f"a request is a JSON object, not {type(value).__name__}")
    rules.check_keys(value)  # first: a misspelt key often leaves another one missing
    try:
        request = AgentRequest.model_validate_json(body, strict=True)  # strict: "3" is not a number, 1 is not true
    except ValidationError as error:
        raise format_error(error) from None
    rules.check_agent(request.agent_id)
    return RawRequest(request.agent_id, id_text(request.custom_id), body)


def _refuse_empty(requests: Iterator[RawRequest]) -> Iterator[RawRequest]:
    first = next(requests, None)
    if first is None:
        raise EmptyBatchError("the batch is empty")
    yield first
    yield from requests
