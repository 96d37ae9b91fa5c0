"""Tool calls of streamed chat completions: any splitting of calls, in each style of servers, gives the same calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchray.models.tool_call_deltas import ToolCallDeltas

Deltas = list[list[dict[str, Any]]]
FEW = settings(max_examples=50)  # of each style


class Call(NamedTuple):
    """A call as its pieces: the arguments are split at random places."""

    id: str
    name: str
    pieces: list[str]

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


@st.composite
def calls(draw: st.DrawFn, min_pieces: int = 1) -> list[Call]:
    found = []
    for i in range(draw(st.integers(1, 4))):
        text = orjson.dumps(draw(st.dictionaries(st.text(max_size=3), st.text(max_size=8), max_size=2))).decode()
        places = sorted(draw(st.lists(st.integers(0, len(text)), min_size=min_pieces - 1, max_size=4)))
        pieces = [text[start:end] for start, end in itertools.pairwise([0, *places, len(text)])]
        found.append(Call(f"id{i}", draw(st.sampled_from(["add", "look"])), pieces))
    return found


def piece(arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return a piece; a name belongs to its function."""
    name = {"name": fields.pop("name")} if "name" in fields else {}
    return {**fields, "function": {**name, **({} if arguments is None else {"arguments": arguments})}}


def as_documented(given: list[Call]) -> Deltas:
    heads = [[piece("", index=i, id=call.id, type="function", name=call.name)] for i, call in enumerate(given)]
    return heads + [[piece(part, index=i)] for i, call in enumerate(given) for part in call.pieces]


def interleaved(given: list[Call]) -> Deltas:
    heads = [[piece(index=i, id=call.id, name=call.name)] for i, call in enumerate(given)]
    rows = itertools.zip_longest(*(call.pieces for call in given))
    return heads + [[piece(part, index=i) for i, part in enumerate(row) if part is not None] for row in rows]


def with_one_index(given: list[Call]) -> Deltas:
    return list(
        _in_turn(given, lambda call, first: {"index": 0, **({"id": call.id, "name": call.name} if first else {})})
    )


def without_index(given: list[Call]) -> Deltas:
    return list(_in_turn(given, lambda call, first: {"id": call.id, "name": call.name} if first else {}))


def with_id_and_name_in_each_piece(given: list[Call]) -> Deltas:
    return list(_in_turn(given, lambda call, first: {"id": call.id, "name": call.name}))


def with_everything_in_each_piece(given: list[Call]) -> Deltas:
    return list(_in_turn(given, lambda call, first: {"index": int(call.id[2:]), "id": call.id, "name": call.name}))


def with_an_index_that_counts_pieces(given: list[Call]) -> Deltas:
    numbers = itertools.count()
    return list(
        _in_turn(given, lambda call, first: {"index": next(numbers), "id": call.id, "name": call.name if first else ""})
    )


def with_empty_ids_later(given: list[Call]) -> Deltas:
    later = {"id": "", "name": None, "type": None}
    return list(
        _in_turn(
            given,
            lambda call, first: {"index": int(call.id[2:]), **({"id": call.id, "name": call.name} if first else later)},
        )
    )


def with_new_ids_in_each_piece(given: list[Call]) -> Deltas:
    numbers = itertools.count()

    def fields(call: Call, first: bool) -> dict[str, Any]:
        return {
            "index": int(call.id[2:]),
            "id": call.id if first else f"x{next(numbers)}",
            **({"name": call.name} if first else {}),
        }

    return list(_in_turn(given, fields))


def with_arguments_before_names(given: list[Call]) -> Deltas:
    return [
        [each]
        for call in given
        for each in (*(piece(part, id=call.id) for part in call.pieces), piece("", id=call.id, name=call.name))
    ]


def with_indexed_arguments_before_names(given: list[Call]) -> Deltas:
    pieces = [[piece(part, index=i)] for i, call in enumerate(given) for part in call.pieces]
    return pieces + [[piece(index=i, id=call.id, name=call.name)] for i, call in enumerate(given)]


def whole_in_one_delta(given: list[Call]) -> Deltas:
    return [[piece(call.arguments, index=0, id=call.id, name=call.name) for call in given]]


def _in_turn(given: list[Call], fields: Callable[[Call, bool], dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield a delta for each piece, one call after the other."""
    for call in given:
        for i, part in enumerate(call.pieces):
            yield [piece(part, **fields(call, i == 0))]


STYLES = [
    as_documented,
    interleaved,
    with_one_index,
    without_index,
    with_id_and_name_in_each_piece,
    with_everything_in_each_piece,
    with_an_index_that_counts_pieces,
    with_empty_ids_later,
    with_new_ids_in_each_piece,
    with_arguments_before_names,
    with_indexed_arguments_before_names,
    whole_in_one_delta,
]


def assembled(deltas: Deltas) -> list[tuple[str, str, str]]:
    reply = ToolCallDeltas()
    for delta in deltas:
        reply.add(delta)
    return [(call.id, call.name, call.text()) for call in reply.calls]


@pytest.mark.parametrize("style", STYLES)
@FEW
@given(given_calls=calls())
def test_any_splitting_gives_the_same_calls(style: Callable[[list[Call]], Deltas], given_calls: list[Call]) -> None:
    assert assembled(style(given_calls)) == [(call.id, call.name, call.arguments) for call in given_calls]


def _named_once(call: Call, first: bool) -> dict[str, Any]:
    return {"name": call.name} if first else {}


def _named_with_index_0(call: Call, first: bool) -> dict[str, Any]:
    return {"index": 0, **_named_once(call, first)}


def _named_in_each_piece(call: Call, first: bool) -> dict[str, Any]:
    return {"index": 0, "name": call.name}


@pytest.mark.parametrize("fields", [_named_once, _named_with_index_0, _named_in_each_piece])
@FEW
@given(given_calls=calls())
def test_calls_without_ids_are_distinguished_by_name(fields: Any, given_calls: list[Call]) -> None:
    given_calls = [call._replace(pieces=list(filter(None, call.pieces))) for call in given_calls]
    expected = [("", call.name, call.arguments) for call in given_calls]
    assert assembled(list(_in_turn(given_calls, fields))) == expected
    assert assembled([[piece(call.arguments, **fields(call, True)) for call in given_calls]]) == expected


@FEW
@given(given_calls=calls())
def test_calls_with_one_id_are_distinguished_by_index(given_calls: list[Call]) -> None:
    same = [call._replace(id="same") for call in given_calls]
    expected = [("same", call.name, call.arguments) for call in given_calls]
    assert assembled(as_documented(same)) == expected
    assert assembled(interleaved(same)) == expected


@FEW
@given(given_calls=calls())
def test_a_whole_call_that_is_repeated_at_the_end_counts_once(given_calls: list[Call]) -> None:
    again = [[piece(call.arguments, index=i, id=call.id, name=call.name)] for i, call in enumerate(given_calls)]
    expected = [(call.id, call.name, call.arguments) for call in given_calls]
    assert assembled(as_documented(given_calls) + again) == expected
