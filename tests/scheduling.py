"""The order of the test files in a run of the whole suite: the slowest files first.

xdist hands out whole files to its processes, in the order of the collection.  If a slow file came last, the other
process would be idle meanwhile.
"""

from __future__ import annotations

SLOWEST_FIRST = (
    "tests/cluster/test_faults.py",
    "tests/cluster/test_readme.py",
    "tests/cluster/test_notebook.py",
    "tests/cluster/test_deaths.py",
    "tests/chaos/test_storm.py",
    "tests/server/test_lifecycle.py",
    "tests/cluster/test_a_cluster_of_nodes.py",
    "tests/cluster/test_steps.py",
    "tests/cluster/test_jobs.py",
    "tests/server/test_postgres.py",
    "tests/cluster/test_authentication.py",
    "tests/cluster/test_cancel.py",
    "tests/server/test_storage.py",
    "tests/cluster/test_awkward.py",
    "tests/server/test_cluster.py",
    "tests/chaos/test_crash_points.py",
    "tests/server/test_hostile_bodies.py",
    "tests/integration/test_store.py",
    "tests/server/test_sdk_methods.py",
    "tests/integration/test_large_jobs.py",
    "tests/chaos/test_stops.py",
    "tests/server/test_limits.py",
    "tests/cluster/test_lost_calls.py",
    "tests/integration/test_conversations.py",
    "tests/integration/test_storage_failures.py",
    "tests/server/test_callbacks.py",
    "tests/integration/test_retention.py",
)
"""Files that take more than about 8 s, by time; the others follow in the order of the collection."""


def rank(nodeid: str) -> int:
    """Return the position of a test's file among the slowest ones."""
    file = nodeid.partition("::")[0]
    return SLOWEST_FIRST.index(file) if file in SLOWEST_FIRST else len(SLOWEST_FIRST)
