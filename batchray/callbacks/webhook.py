"""The body of a callback, and its signature headers.

Source: the Standard Webhooks specification 1.0.0 (standardwebhooks.com), for the signature and its headers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from batchray.errors import ConfigError

_PREFIX = "whsec_"
_MIN_KEY_BYTES = 24  # the specification's minimum


def payload_of(
    job_id: str,
    status: str,
    completed_at: datetime,
    metadata: Mapping[str, Any] | None,
    run_id: str | None = None,
) -> bytes:
    """Return the body of a job's callback, with Letta's keys; `completed_at`, an aware time, is written with `Z`.

    `run_id` is that of a single request.
    """
    payload = {
        "job_id": job_id,
        **({"run_id": run_id} if run_id is not None else {}),
        "status": status,
        "completed_at": completed_at.astimezone(UTC),
        "metadata": dict(metadata) if metadata is not None else None,
    }
    return orjson.dumps(payload, option=orjson.OPT_UTC_Z)


class Signer:
    """Signs with each of `secrets`, so that a receiver can verify with the old or the new one during a rotation.

    A secret is the base64 of at least 24 bytes, with an optional prefix `whsec_`.  Without secrets, nothing is signed.
    Raises ConfigError for an invalid secret, without showing it.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._keys = [_key(secret, position) for position, secret in enumerate(secrets, start=1)]

    def headers(self, webhook_id: str, sent_at: float, payload: bytes) -> dict[str, str]:
        """Return the headers of one attempt.  `webhook_id` is the same for all attempts; `sent_at` is Unix time."""
        timestamp = str(int(sent_at))
        headers = {"webhook-id": webhook_id, "webhook-timestamp": timestamp}
        if self._keys:
            signed = b".".join((webhook_id.encode(), timestamp.encode(), payload))
            headers["webhook-signature"] = " ".join(_signature(key, signed) for key in self._keys)
        return headers


def _signature(key: bytes, signed: bytes) -> str:
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


def _key(secret: str, position: int) -> bytes:
    encoded = secret.removeprefix(_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise ConfigError(f"callback secret {position} is not base64; write it as {_PREFIX}<base64>") from None
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigError(f"callback secret {position} has {len(key)} bytes; it needs at least {_MIN_KEY_BYTES}")
    return key
