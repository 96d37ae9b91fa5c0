"""Splits the bytes of a batch into its requests: the lines of JSON Lines, or the parts of a JSON document.

Lines are read one by one.  A whole document is a file mapped into memory, of which the parts are slices.
"""

from __future__ import annotations

import codecs
import itertools
import mmap
import re
from collections.abc import Generator, Sequence
from io import BufferedReader, FileIO
from typing import BinaryIO, NamedTuple

import msgspec
import orjson
from pydantic import ValidationError

from batchray.batch.source import BOM, readable
from batchray.batch.strict_json import MAX_DEPTH, refuse_duplicate_members, request_index_at
from batchray.errors import BatchFormatError
from batchray.schema import CreateBatch
from batchray.schema.validation_text import request_problem

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""The largest request: no provider that we know of takes a larger body (Anthropic documents 32 MB)."""

_PIECE_BYTES = 1024 * 1024

Buffer = mmap.mmap | bytes | memoryview


class Lines(NamedTuple):
    """JSON Lines: the first line that is not blank, and all such lines with their numbers, which count from 1."""

    first: bytes
    numbered: Generator[tuple[int, bytes]]


class JsonDocument(NamedTuple):
    """A JSON document: its requests, unparsed."""

    requests: Sequence[msgspec.Raw]
    callback_url: str | None = None


def split_stream(stream: BinaryIO, *, is_lines: bool, is_document: bool = False) -> Lines | JsonDocument:
    """Return the lines or the document in a stream of UTF-8, which is closed when all of it has been read.

    `is_lines` and `is_document` are what is known without looking.  Raises BatchFormatError.
    """
    blank: list[bytes] = []
    try:
        with readable():
            while (first := stream.readline(MAX_REQUEST_BYTES + 1)) and not first.removeprefix(BOM).strip():
                blank.append(first)
    except BaseException:
        stream.close()
        raise
    if not is_document and _is_request_line(first.removeprefix(BOM), is_lines):
        return Lines(first.removeprefix(BOM), _numbered(stream, [*blank, first]))
    with stream, readable():
        return split_body(_mapped(stream) or b"".join(blank) + first + stream.read(), accepts_array=True)


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


def _numbered(stream: BinaryIO, first: Sequence[bytes]) -> Generator[tuple[int, bytes]]:
    """Yield the lines that are not blank, without their ends."""
    rest = iter(lambda: stream.readline(MAX_REQUEST_BYTES + 1), b"")
    with stream, readable():
        for number, line in enumerate(itertools.chain(first, rest), start=1):
            line = line.removeprefix(BOM)  # of the file, or of one that was appended
            if not line.isspace() and line.strip() not in (b"", b"\x1a"):  # Ctrl-Z: the end of a text of DOS
                yield number, line.rstrip(b"\r\n")


def numbered_lines(stream: BinaryIO) -> Generator[tuple[int, bytes]]:
    """Yield the lines of a stream of UTF-8 that are not blank, with their numbers, which count from 1."""
    return _numbered(stream, ())


def _spellings(name: str) -> str:
    """Return a pattern of all ways to write a key in JSON: each letter as it is, or escaped."""
    return "".join(rf"(?:{letter}|\\u00(?i:{ord(letter):02x}))" for letter in name)


_MEMBER = re.compile(rb'("(?:requests|callback_url)")\s*:')
# Several times slower, and hardly ever needed.
_ESCAPED_MEMBER = re.compile(rf'("(?:{_spellings("requests")}|{_spellings("callback_url")})")\s*:'.encode())
_ESCAPED_LETTER = re.compile(rb"\\u00[567]")


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    requests: list[msgspec.Raw]
    callback_url: str | None = None


def split_body(buffer: Buffer, *, accepts_array: bool) -> JsonDocument:
    """Split a whole body into its requests; with `accepts_array` it may be the array alone."""
    if buffer[: len(BOM)] == BOM:
        buffer = memoryview(buffer)[len(BOM) :]
    try:
        body = msgspec.json.decode(buffer, type=_Body | list[msgspec.Raw] if accepts_array else _Body)
    except msgspec.ValidationError as error:
        raise _no_batch(buffer, str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _body_error(buffer, error) from None
    if isinstance(body, list):
        return JsonDocument(body)
    spelled = _ESCAPED_MEMBER if _ESCAPED_LETTER.search(buffer) else _MEMBER
    names = [orjson.loads(name) for name in spelled.findall(buffer)]
    if len(names) > len(set(names)):  # a duplicate in the body, or a member of a request
        refuse_duplicate_members(buffer)
    callback_url = None if body.callback_url is None else read_callback_url(body.callback_url)
    return JsonDocument(body.requests, callback_url)


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
    # A UnicodeDecodeError, or since msgspec 0.23 one of its own.  The requests are not decoded yet.
    if "utf-8" in str(error).lower() and (bad := _first_bad_byte(buffer)) is not None:
        return BatchFormatError(f"not UTF-8: byte 0x{bad:02x} in a key or in callback_url; encode it as UTF-8")
    if index is None:
        return BatchFormatError(f"neither JSON Lines nor a JSON batch: {error}")
    if isinstance(error, RecursionError):
        return BatchFormatError(f"nested deeper than {MAX_DEPTH} levels", index=index)
    return BatchFormatError(f"not JSON: {str(error).removeprefix('JSON is malformed: ')}", index=index)


def _first_bad_byte(buffer: Buffer) -> int | None:
    """Return the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(buffer), _PIECE_BYTES):
        try:
            decoder.decode(bytes(buffer[start : start + _PIECE_BYTES]))
        except UnicodeDecodeError as error:
            return int(error.object[error.start])
    return None


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
