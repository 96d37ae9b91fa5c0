"""Arguments of tool calls, from the model's text to the values that the function gets."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from batchray.agents.arguments import BadArgumentsError, check_exact, read_arguments
from batchray.agents.tools import ToolError, make_tool

BIG = 25_000_000_000_000_000_001
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_any_object_is_read_exactly(written: dict[str, Any]) -> None:
    given = read_arguments(json.dumps(written))
    assert given.values == written
    assert check_exact(given.values, given.rounded) is None


@pytest.mark.parametrize("text", ["", " ", "null", "[]", "{}"])
def test_empty_text_and_null_are_no_arguments(text: str) -> None:
    assert read_arguments(text).values == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"n": ', "are not JSON: Expecting value: line 1 column 7 (char 6): '{\"n\": '"),
        ("[1]", "are a list, not a JSON object: '[1]'"),
        ("5", "are a number, not a JSON object: '5'"),
        ("true", "are a boolean, not a JSON object: 'true'"),
        ('"Oslo"', "are text, not a JSON object: '\"Oslo\"'"),
        ('{"n": NaN}', "are not JSON: NaN is not a number of JSON: '{\"n\": NaN}'"),
        ('{"n": 1e999}', "are not JSON: the number 1e999 is too large: '{\"n\": 1e999}'"),
        ("{'n': \ud83d}", "are not JSON: Expecting property name"),
        ('{"n": ' + "9" * 5000 + "}", "are not JSON: Exceeds the limit"),
        ('{"n": ' + "[" * 100_000, "are n"),
    ],
)
def test_the_error_for_unreadable_arguments_says_what_they_are(text: str, told: str) -> None:
    with pytest.raises(BadArgumentsError) as caught:
        read_arguments(text)
    assert str(caught.value).startswith(told)
    assert len(str(caught.value).encode()) < 1000


class Transfer(BaseModel):
    wei: float


@pytest.mark.parametrize(
    ("annotation", "written", "got"),
    [
        (int, str(BIG), BIG),
        (int, str(-(2**63) - 1), -(2**63) - 1),
        (Any, str(BIG), BIG),
        (dict, f'{{"wei": {BIG}}}', {"wei": BIG}),
        (list[Any], f"[1, {BIG}]", [1, BIG]),
        (float, str(2**70), float(2**70)),
        (float, "1e25", 1e25),
        (float, "0.12345678901234567891", 0.12345678901234567891),
        (Decimal, "1.10", Decimal("1.10")),
        (str, '"25000000000000000001"', "25000000000000000001"),
    ],
)
async def test_a_tool_gets_the_number_that_the_model_wrote(annotation: Any, written: str, got: Any) -> None:
    received: list[Any] = []

    def take(value: Any) -> None:
        received.append(value)

    take.__annotations__["value"] = annotation
    given = read_arguments(f'{{"value": {written}}}')
    await make_tool(take, 1.0).call(given.values, rounded=given.rounded)
    assert received == [got]
    assert type(received[0]) is type(got)


@pytest.mark.parametrize(
    ("annotation", "written", "number"),
    [
        (float, str(BIG), str(BIG)),
        (list[float], f"[1.5, {BIG}]", str(BIG)),
        (dict[str, float], f'{{"a": {BIG}}}', str(BIG)),
        (Transfer, f'{{"wei": {BIG}}}', str(BIG)),
        (int, "9.007199254740993e15", "9.007199254740993e15"),
        (int, "9007199254740993.0", "9007199254740993.0"),
        (Decimal, "12345678901234567.89", "12345678901234567.89"),
    ],
)
async def test_a_number_that_would_be_changed_goes_back_to_the_model(
    annotation: Any, written: str, number: str
) -> None:
    def take(value: Any) -> None: ...

    take.__annotations__["value"] = annotation
    given = read_arguments(f'{{"value": {written}}}')
    with pytest.raises(ToolError) as caught:
        await make_tool(take, 1.0).call(given.values, rounded=given.rounded)
    assert f"the number {number} cannot be passed exactly: it would become " in str(caught.value)
