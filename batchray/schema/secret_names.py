"""Which names stand for secret values.  Such a value is never stored, logged or shown."""

from __future__ import annotations

import re

# Short words count only as whole ones: `sig` and `sas` sign addresses of Azure.
_SECRET = re.compile(
    "auth|bearer|cookie|credential|jwt|key|passw|secret|signature|token|(?<![a-z])(pass|pwd|sas|sig)(?![a-z])",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether a header, a query parameter or an environment variable of this name holds a secret."""
    return _SECRET.search(name) is not None
