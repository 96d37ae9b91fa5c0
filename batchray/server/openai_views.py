"""Stored files and jobs as OpenAI's API shows them."""

from __future__ import annotations

from datetime import datetime

from batchray.schema.openai_files import OpenAIFile
from batchray.store import StoredFile


def file_view(file: StoredFile) -> OpenAIFile:
    """Return an uploaded file."""
    return OpenAIFile(
        id=file.id,
        bytes=file.n_bytes,
        created_at=seconds(file.created_at) or 0,
        expires_at=seconds(file.expires_at),
        filename=file.filename,
        purpose="batch",
    )


def seconds(time: str | None) -> int | None:
    """Return a time of the store in seconds since 1970."""
    return None if time is None else int(datetime.fromisoformat(time).timestamp())
