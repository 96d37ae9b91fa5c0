"""The order of the test files in a run of the whole suite: the slowest files first.

xdist hands out whole files to its processes, in the order of the collection.  If a slow file came last, the other
process would be idle meanwhile.
"""

from __future__ import annotations

SLOWEST_FIRST = (
    "tests/cluster/test_faults.py",
    "tests/server/test_postgres.py",
    "tests/server/test_lifecycle.py",
    "tests/cluster/test_readme.py",
    "tests/cluster/test_deaths.py",
    "tests/cluster/test_a_cluster_of_nodes.py",
    "tests/cluster/test_notebook.py",
    "tests/chaos/test_storm.py",
    "tests/cluster/test_steps.py",
    "tests/chaos/test_crash_points.py",
    "tests/server/test_storage.py",
    "tests/cluster/test_cancel.py",
    "tests/cluster/test_authentication.py",
    "tests/cluster/test_jobs.py",
    "tests/integration/test_turns.py",
    "tests/server/test_sdk_methods.py",
    "tests/integration/test_store.py",
    "tests/server/test_hostile_bodies.py",
    "tests/server/test_cluster.py",
    "tests/integration/test_cli_errors.py",
    "tests/cluster/test_quickstart.py",
    "tests/chaos/test_stops.py",
    "tests/chaos/test_syncs.py",
    "tests/server/test_limits.py",
    "tests/integration/test_large_jobs.py",
    "tests/integration/test_storage_failures.py",
    "tests/cluster/test_awkward.py",
    "tests/server/test_callbacks.py",
    "tests/server/test_endings.py",
    "tests/integration/test_conversations.py",
    "tests/server/test_letta_sdk.py",
    "tests/server/test_keys.py",
    "tests/server/test_remembering.py",
    "tests/integration/test_retention.py",
    "tests/cluster/test_lost_calls.py",
    "tests/integration/test_leases.py",
    "tests/server/test_beyond_letta.py",
)
"""Files that take more than about 10 s, by time; the others follow in the order of the collection."""


def rank(nodeid: str) -> int:
    """Return the position of a test's file among the slowest ones."""
    file = nodeid.partition("::")[0]
    return SLOWEST_FIRST.index(file) if file in SLOWEST_FIRST else len(SLOWEST_FIRST)
