"""The nodes of the cluster, and on which of them lanes start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import ray
import ray.exceptions

from batchray.executors.ray import internals

_MAX_LANES_PER_NODE = 8
# A driver keeps about two lanes busy with requests that wait for models.  More help requests that compute.
_MAX_LANES = 64

UNREADABLE = (TimeoutError, OSError, RuntimeError, ray.exceptions.RayError)
"""The errors of a read of the nodes while the cluster does not answer, or is gone."""


class Node(NamedTuple):
    """A node that is alive.  `is_leaving`: it is drained, and ends soon."""

    id: str
    resources: Mapping[str, float]
    free_cpus: float
    is_leaving: bool = False

    def has(self, wanted: Mapping[str, float]) -> bool:
        """Return whether it has these resources, free or not."""
        return all(self.resources.get(name, 0) >= amount for name, amount in wanted.items())


def read_nodes() -> list[Node]:
    """Return the nodes that are alive.  Blocks until the GCS has answered."""
    free, leaving = internals.free_cpus(), internals.leaving_nodes()
    found: Iterable[tuple[str, dict[str, float]]] = (
        (node["NodeID"], node["Resources"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    )
    return [Node(id_, has, free.get(id_, has.get("CPU", 0.0)), id_ in leaving) for id_, has in found]


def staying(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes that take new work: those that are not drained, or all of them if there are no others."""
    return [node for node in nodes if not node.is_leaving] or list(nodes)


def places_for_lanes(nodes: Sequence[Node], present: Iterable[str], n_lanes: int | None = None) -> list[str]:
    """Return the nodes on which lanes are missing, one for each lane to start, in the order to start them.

    `present` are the nodes of the lanes that exist.  By default each node has a lane for each free CPU, at most 8, and
    all of them at most 64; otherwise there are `n_lanes`.  Lanes are in proportion to free CPUs, and neighbours in the
    list are on different nodes.  If no CPU is free, the first lanes, and `n_lanes`, are spread by all CPUs; if there is
    none, each node counts as one CPU.
    """
    usable = staying(nodes)
    cpus = _cpus(usable)
    counts = Counter({node.id: 0 for node in usable})
    counts.update(node_id for node_id in present if node_id in counts)
    if n_lanes is None and counts.total() and not any(node.free_cpus > 0 for node in usable):
        return []
    room = {id_: n_lanes or min(max(int(n), 1), _MAX_LANES_PER_NODE) for id_, n in cpus.items()}
    places: list[str] = []
    while counts.total() < (n_lanes or _MAX_LANES):
        # Webster's method: the node that is furthest below its share comes next.
        open_ = (id_ for id_ in cpus if counts[id_] < room[id_])
        place = max(open_, key=lambda id_: cpus[id_] / (2 * counts[id_] + 1), default=None)
        if place is None:
            break
        places.append(place)
        counts[place] += 1
    return places


def _cpus(nodes: Sequence[Node]) -> dict[str, float]:
    """Return how many CPUs lanes may use, by node; nodes without any are left out."""
    for cpus in (
        {node.id: node.free_cpus for node in nodes},
        {node.id: node.resources.get("CPU", 0.0) for node in nodes},
    ):
        if some := {id_: n for id_, n in cpus.items() if n > 0}:
            return some
    return {node.id: 1.0 for node in nodes}
