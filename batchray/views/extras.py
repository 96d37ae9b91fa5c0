"""Packages that only an extra installs: the error if one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchray.errors import ConfigError


@contextmanager
def needing(package: str, extra: str) -> Iterator[None]:
    """Raise ConfigError if the block imports `package` and it is not installed; `extra` is what installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ConfigError(f"needs {package}, which is not installed: pip install 'batchray[{extra}]'") from None
