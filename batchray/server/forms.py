"""Reads forms (`multipart/form-data`): files and texts.  Source: RFC 7578, and RFC 2046, 5.1.

A large form is a file that is mapped into memory; the content of a part is a slice of it.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import NamedTuple

from aiohttp import web

from batchray.server.errors import HttpError

Buffer = mmap.mmap | bytes

_MAX_PARTS, _MAX_HEADER_BYTES, _MAX_FIELD_BYTES = 20, 8190, 4096
_MAX_NAME = 255
# The search of a window holds the GIL.
_WINDOW = 8 * 1024 * 1024
# How HTML escapes these in a name.
_ESCAPED = re.compile("%22|%0[AD]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class FormFile(NamedTuple):
    """The file of a form: its name, and where its content is in the form."""

    filename: str
    start: int
    end: int


class Form(NamedTuple):
    """A form: its texts and its files, each by name."""

    fields: Mapping[str, str]
    files: Mapping[str, FormFile]


def boundary_of(request: web.Request) -> bytes:
    """Return the boundary between the parts of a form.  Raises HttpError 415 if the body is not a form."""
    if request.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
        raise HttpError(415, "only the Content-Encoding identity is supported; send the form uncompressed")
    head = Message()
    head["Content-Type"] = request.headers.get("Content-Type", "")
    boundary = head.get_boundary()
    if head.get_content_type() != "multipart/form-data" or not boundary or len(boundary) > 70:
        raise HttpError(415, "the body must have Content-Type multipart/form-data with a boundary")
    return boundary.encode(errors="replace")


def read_form(body: Buffer, boundary: bytes) -> Form:
    """Return the parts of a form.  Raises HttpError 400 for one that is malformed."""
    fields, found = dict[str, str](), dict[str, FormFile]()
    for head, start, end in _parts(body, b"--" + boundary):
        name = head.get_param("name", header="Content-Disposition")
        if head.get_content_disposition() != "form-data" or not isinstance(name, str):
            raise _malformed("a part has no header Content-Disposition: form-data with a name")
        if head.get("Content-Transfer-Encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
            raise _malformed("a part has a Content-Transfer-Encoding; send it as it is")
        if name in fields or name in found:
            raise _malformed(f"{name[:60]!r} occurs twice")
        if (filename := head.get_filename()) is not None:
            found[name] = FormFile(_unescaped(filename)[:_MAX_NAME] or "file", start, end)
        elif end - start > _MAX_FIELD_BYTES:
            raise _malformed(f"{name[:60]!r} is longer than {_MAX_FIELD_BYTES} bytes; send a file with its filename")
        else:
            fields[name] = body[start:end].decode(errors="replace")
    return Form(fields, found)


def _parts(body: Buffer, delimiter: bytes) -> Iterator[tuple[Message, int, int]]:
    """Yield the headers of each part, and where its content begins and ends."""
    here = 0 if body[: len(delimiter)] == delimiter else body.find(b"\r\n" + delimiter) + 2
    if here == 1:
        raise _malformed("its boundary does not occur")
    for _ in range(_MAX_PARTS + 1):
        here += len(delimiter)
        if body[here : here + 2] == b"--":
            return
        line_end = body.find(b"\r\n", here, here + _MAX_HEADER_BYTES)
        if line_end < 0 or body[here:line_end].strip(b" \t"):
            raise _malformed("a boundary is not a line of its own")
        head_end = body.find(b"\r\n\r\n", line_end, line_end + _MAX_HEADER_BYTES)
        start = head_end + 4
        end = _find(body, b"\r\n" + delimiter, head_end + 2)
        if head_end < 0 or end < 0:
            raise _malformed("it ends within a part")
        yield _head(body[line_end + 2 : head_end]), start, end
        here = end + 2
    raise _malformed(f"it has more than {_MAX_PARTS} parts")


def _find(body: Buffer, what: bytes, start: int) -> int:
    """Return where something begins in a body, at `start` or later; -1 if it does not occur."""
    for here in range(start, len(body), _WINDOW):
        if (found := body.find(what, here, here + _WINDOW + len(what) - 1)) >= 0:
            return found
    return -1


def _head(lines: bytes) -> Message:
    """Return the headers of a part, which are in UTF-8."""
    head = Message()
    for line in lines.decode(errors="replace").split("\r\n"):
        name, _, value = line.partition(":")
        head[_CONTROL.sub("", name).strip()] = _CONTROL.sub("", value).strip()
    return head


def _unescaped(name: str) -> str:
    """Return a name without control characters, with its quotation marks."""
    return _CONTROL.sub("", _ESCAPED.sub(lambda found: '"' if found[0] == "%22" else "", name))


def _malformed(reason: str) -> HttpError:
    return HttpError(400, f"the form is malformed: {reason}")
