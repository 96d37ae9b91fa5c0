"""Uploads of files: a form becomes a stored file."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import orjson

from batchray.batch.source import BOM
from batchray.batch.split import MAX_REQUEST_BYTES
from batchray.server.errors import NO_RETRY, HttpError
from batchray.server.forms import Buffer, Form, FormFile
from batchray.server.upload import MAX_BODY_BYTES
from batchray.store import NewFile
from batchray.store.files import PART_BYTES

_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_DAYS = 30
_SECONDS = re.compile("[0-9]{4,7}")
_BLANK = re.compile(rb"\s*")


class FileUpload(NamedTuple):
    """A file in the body of a request, checked."""

    new: NewFile
    body: Buffer
    start: int

    def parts(self) -> Iterator[bytes]:
        """Yield the content in parts."""
        end = self.start + self.new.n_bytes
        for here in range(self.start, end, PART_BYTES):
            yield self.body[here : min(here + PART_BYTES, end)]


def read_upload(form: Form, body: Buffer, key: str | None, now: datetime | None = None) -> FileUpload:
    """Return the file in a form.  Blocks.  Raises HttpError 400 and 413, as OpenAI's API does."""
    if unknown := sorted({*form.fields, *form.files} - {"file", *_FIELDS}):
        raise refused(f"Unknown parameter: {unknown[0][:60]!r}.", unknown[0][:60], "unknown_parameter")
    file = form.files.get("file")
    if file is None:
        raise refused("'file' is a required property: send the content as a file, with a filename", "file")
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise refused("'purpose' is a required property", "purpose")
    if purpose != "batch":
        sentence = f"Invalid value: {purpose[:60]!r}. The supported value is: 'batch'."
        raise refused(sentence, "purpose", "invalid_value")
    expires_at = (now or datetime.now(UTC)) + _expiry(form.fields)
    if file.end - file.start > MAX_BODY_BYTES:
        raise HttpError(413, f"The file is too large. Max is {MAX_BODY_BYTES} bytes.")
    _check_lines(body, file)
    new = NewFile(
        f"file-{uuid.uuid4().hex}",
        file.filename,
        purpose,
        file.end - file.start,
        expires_at.isoformat(timespec="microseconds"),
        key,
        _digest(form, file, body) if key is not None else None,
    )
    return FileUpload(new, body, file.start)


def refused(sentence: str, param: str | None, code: str | None = None) -> HttpError:
    """Return the 400 for a parameter."""
    return HttpError(400, sentence, NO_RETRY, {"param": param, "code": code})


def _expiry(fields: Mapping[str, str]) -> timedelta:
    """Return how long a file is kept.  Raises HttpError 400."""
    _, anchor, seconds = (fields.get(name) for name in _FIELDS)
    if anchor is None and seconds is None:
        return timedelta(days=_DAYS)
    if anchor != "created_at":
        raise refused("expires_after.anchor is 'created_at'", "expires_after.anchor", "invalid_value")
    if seconds is None or not _SECONDS.fullmatch(seconds) or not 3600 <= int(seconds) <= _DAYS * 86_400:
        raise refused("expires_after.seconds is from 3600 to 2592000", "expires_after.seconds", "invalid_value")
    return timedelta(seconds=int(seconds))


def _check_lines(body: Buffer, file: FormFile) -> None:
    """Raise HttpError 400 for a file that does not begin with a JSON object on a line: no batch can be made of it.

    What is too long for a request is neither parsed nor searched, because that would hold the GIL for long.
    """
    start = file.start + len(BOM) if body[file.start : file.start + len(BOM)] == BOM else file.start
    blank = _BLANK.match(body, start, min(file.end, start + MAX_REQUEST_BYTES))
    here = blank.end() if blank else start
    longest = min(file.end, here + MAX_REQUEST_BYTES + 1)
    newline = body.find(b"\n", here, longest)
    end = newline if newline >= 0 else longest
    if here == file.end:
        why = "it is empty"
    elif end - here > MAX_REQUEST_BYTES:
        why = f"its first line is longer than {MAX_REQUEST_BYTES >> 20} MiB"
    elif not _is_object(body[here:end]):
        why = "its first line is not a JSON object"
    else:
        return
    raise refused(f"Invalid file format for Batch API. Must be .jsonl: JSON Lines in UTF-8; {why}", "file")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _digest(form: Form, file: FormFile, body: Buffer) -> str:
    """Return the digest of what a form holds; its boundary is another one in each repetition."""
    digest = hashlib.sha256(orjson.dumps([file.filename, dict(form.fields)], option=orjson.OPT_SORT_KEYS))
    for here in range(file.start, file.end, PART_BYTES):
        digest.update(body[here : min(here + PART_BYTES, file.end)])
    return digest.hexdigest()
