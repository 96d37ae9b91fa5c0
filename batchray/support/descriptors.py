"""The file descriptors that this process may open: its limit, and how many requests fit into it."""

from __future__ import annotations

import logging
import os
import resource

logger = logging.getLogger(__name__)

# Some programs close every descriptor that they might have, one by one.  Containers may allow a billion.
_MAX_LIMIT = 65_536
# For files of the store, name lookups, and whatever tools open for a moment.
_SPARE = 64


def raise_descriptor_limit() -> None:
    """Raise the limit of open files to the most that this process, and what it starts, may have.

    The usual limit of 1,024 is for programs that call `select`; each request in flight holds a connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_LIMIT if hard == resource.RLIM_INFINITY else min(hard, _MAX_LIMIT)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        logger.info("the limit of %d open files cannot be raised to %d: %s", soft, wanted, error)


def connections_that_fit() -> int:
    """Return how many requests, with one connection each, this process can have in flight; at least one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MAX_LIMIT if soft == resource.RLIM_INFINITY else soft
    return max(1, limit - _n_open() - _SPARE)


def _n_open() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return _SPARE
