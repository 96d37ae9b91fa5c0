"""Which names stand for secret values.  Such a value is never stored, logged or shown."""

from __future__ import annotations

import re

_SECRET = re.compile("auth|cookie|credential|key|passw|secret|signature|token", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether a header, a query parameter or an environment variable of this name holds a secret."""
    return _SECRET.search(name) is not None
