"""Groups of tests: one process runs a whole group, one test after the other.

This is a scheduler of our own because xdist's `loadgroup` renames the tests, and with some versions of pytest it
groups nothing.
"""

from __future__ import annotations

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling

CLUSTER = "the session's cluster"
_CLUSTER = PurePath("tests/cluster")
_WITH_CLUSTERS_OF_THEIR_OWN = {
    "test_a_cluster_of_nodes",
    "test_authentication",
    "test_notebook",
    "test_quickstart",
    "test_readme",
}


def group_of(nodeid: str) -> str:
    """Name the group of a test: its file, or the cluster that it shares with tests of other files."""
    file = PurePath(nodeid.partition("::")[0])
    shares_cluster = file.parent == _CLUSTER and file.stem not in _WITH_CLUSTERS_OF_THEIR_OWN
    return CLUSTER if shares_cluster else str(file)


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Assigns whole groups to processes, in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
