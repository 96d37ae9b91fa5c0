"""The formats of exports, and the one that the name of a file tells."""

from __future__ import annotations

import re
from pathlib import PurePath, PurePosixPath
from typing import BinaryIO

from batchray.errors import UsageError

EXPORT_FORMATS = ("parquet", "jsonl", "csv", "openai", "anthropic", "atif", "sft")
"""The formats of exports.  The name of a file tells the first three."""

OPENAI_ENDPOINTS = ("/v1/chat/completions", "/v1/responses")
"""The endpoints of requests to OpenAI; each has an object of its own as the body of a response."""

Target = str | PurePath | BinaryIO
"""A path, an address that a file system opens, or an open binary file."""

_PACKED = re.compile(r"\.(gz|zst)$", re.IGNORECASE)
_LINES = re.compile(r"((\.(jsonl|ndjson|json|txt))?(\.(gz|zst))?)$", re.IGNORECASE)
_SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


def export_format(target: Target, given: str | None) -> str:
    """Return the format that is given, or that the name of the file tells.

    Raises UsageError for an unknown format, and for one that the file cannot have.
    """
    if given is not None and given not in EXPORT_FORMATS:
        raise UsageError(f"unknown format {given[:40]!r}; there are: {', '.join(EXPORT_FORMATS)}")
    name = str(target) if isinstance(target, str | PurePath) else ""
    inner = _PACKED.sub("", name)
    if (found := given or _SUFFIXES.get(PurePosixPath(inner).suffix.lower())) is None:
        what = f"the name {name!r} does" if name else "an open file does"
        raise UsageError(f"{what} not tell the format; name it: {', '.join(EXPORT_FORMATS)}")
    if found == "parquet" and not name:
        raise UsageError("Parquet is written to a file or a directory, not to an open file; name one")
    if found == "parquet" and name != inner:
        raise UsageError(f"Parquet is compressed inside; name {inner!r} instead of {name!r}")
    return found


def check_endpoint(endpoint: str) -> None:
    """Raise UsageError for an endpoint whose objects are unknown."""
    if endpoint not in OPENAI_ENDPOINTS:
        raise UsageError(f"unknown endpoint {endpoint[:60]!r}; there are: {', '.join(OPENAI_ENDPOINTS)}")


def beside(target: Target) -> Target:
    """Return where the errors of a file go: `x.errors.jsonl` for `x.jsonl`; an open file gets them too."""
    return _LINES.sub(r".errors\1", str(target), count=1) if isinstance(target, str | PurePath) else target
