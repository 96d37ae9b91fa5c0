"""On which nodes of a cluster lanes start."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from batchray.executors.ray.nodes import Node, places_for_lanes


def node(name: str, cpus: float, free: float | None = None, *, is_leaving: bool = False) -> Node:
    return Node(name, {"CPU": cpus}, cpus if free is None else free, is_leaving)


NODES = st.lists(
    st.tuples(st.integers(0, 40), st.floats(0, 1), st.booleans()).map(lambda it: (it[0], it[0] * it[1], it[2])),
    min_size=1,
    max_size=12,
).map(lambda given: [node(f"n{n}", cpus, free, is_leaving=gone) for n, (cpus, free, gone) in enumerate(given)])


def test_one_node_has_a_lane_for_each_cpu_and_at_most_eight() -> None:
    assert places_for_lanes([node("a", 3)], ()) == ["a"] * 3
    assert places_for_lanes([node("a", 64)], ()) == ["a"] * 8


def test_lanes_are_in_proportion_to_free_cpus_and_neighbours_are_on_different_nodes() -> None:
    nodes = [node("head", 0), node("a", 4, free=1), node("b", 2)]
    assert places_for_lanes(nodes, ()) == ["b", "a", "b"]
    assert Counter(places_for_lanes([node("a", 2), node("b", 4)], (), n_lanes=12)) == {"a": 4, "b": 8}


def test_a_node_without_cpus_has_a_lane_only_if_no_node_has_any() -> None:
    assert places_for_lanes([node("head", 0), node("a", 1)], ()) == ["a"]
    assert places_for_lanes([node("head", 0)], ()) == ["head"]


def test_if_others_use_all_cpus_lanes_are_spread_by_all_of_them() -> None:
    assert Counter(places_for_lanes([node("a", 2, free=0), node("b", 4, free=0)], ())) == {"a": 2, "b": 4}


def test_no_lane_is_added_while_others_use_all_cpus() -> None:
    assert places_for_lanes([node("a", 64, free=0)], ["a", "a"]) == []
    assert places_for_lanes([node("a", 64, free=0)], ["a"], n_lanes=2) == ["a"]


def test_a_node_that_joins_gets_lanes_and_the_others_keep_theirs() -> None:
    nodes = [node("a", 2), node("b", 2)]
    assert places_for_lanes(nodes, ["a", "a", "b", "b"]) == []
    assert places_for_lanes([*nodes, node("c", 3)], ["a", "a", "b", "b"]) == ["c"] * 3


def test_a_drained_node_gets_no_lanes_unless_all_are_drained() -> None:
    nodes = [node("a", 2, is_leaving=True), node("b", 2)]
    assert places_for_lanes(nodes, ["a", "a"]) == ["b", "b"]
    assert places_for_lanes([node("a", 2, is_leaving=True)], ()) == ["a", "a"]


def test_a_given_number_of_lanes_is_kept_when_a_node_leaves() -> None:
    assert places_for_lanes([node("a", 4)], ["a", "a", "gone"], n_lanes=3) == ["a"]


@given(NODES, st.none() | st.integers(1, 20), st.lists(st.integers(0, 14).map(lambda n: f"n{n}"), max_size=20))
def test_lanes_that_start_are_enough_and_no_more_are_ever_missing_afterwards(
    nodes: list[Node], n_lanes: int | None, present: list[str]
) -> None:
    places = places_for_lanes(nodes, present, n_lanes)
    assert places_for_lanes(nodes, [*present, *places], n_lanes) == []
    used = [node for node in nodes if not node.is_leaving] or nodes
    kept = [name for name in present if name in {node.id for node in used}]
    assert places or kept, "there is always a lane"
    assert len(kept) + len(places) <= max(len(kept), n_lanes or 64)
    if n_lanes is not None:
        assert len(kept) + len(places) >= n_lanes
