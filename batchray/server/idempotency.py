"""Idempotency keys: the same request with the same key is one job."""

from __future__ import annotations

import re

from aiohttp import web

from batchray.server.errors import NO_RETRY, HttpError
from batchray.store import JobRecord, ThreadedStore

KEY_PATTERN = "[!-~]([ -~]{0,253}[!-~])?"
"""A key as a regular expression, without anchors."""


def key_of(request: web.Request) -> str | None:
    """Return the header `Idempotency-Key`, or None.  Raises HttpError 400 if it is unusable."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(KEY_PATTERN, key):
        raise HttpError(400, "Idempotency-Key: need 1 to 255 printable ASCII characters")
    return key


async def known_job(reader: ThreadedStore, user_id: str, key: str | None, digest: str | None) -> JobRecord | None:
    """Return the job that a user has created with this key; None if there is none, or no key.

    Raises HttpError 422 if the key came with another body, whose digest differs.
    """
    if key is None or (known := await reader.jobs.find_by_idempotency_key(user_id, key)) is None:
        return None
    if known.body_digest != digest:
        raise HttpError(422, "this Idempotency-Key came with another body before", NO_RETRY)
    return known
