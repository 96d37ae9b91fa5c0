"""Arguments of tool calls: read leniently, and sent in a form that every server accepts."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.models.arguments import as_object, joined_surrogates, object_to_send

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=3)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("", {}),
        (" \n", {}),
        ("null", {}),
        ('""', {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": "two\nlines\tand a tab"}', {"a": "two\nlines\tand a tab"}),
        ('{"a": [1, 2,], "b": {"c": 3,},\n}', {"a": [1, 2], "b": {"c": 3}}),
        ('{"a": "[1,]", "b": "x,}\\",]",}', {"a": "[1,]", "b": 'x,}",]'}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ('{"a": 123456789012345678901234567890,}', {"a": 123456789012345678901234567890}),
        ('{"a": "\\ud83c\\udf1e \\ud83c"}', {"a": "\U0001f31e \ufffd"}),
    ],
)
def test_an_object_is_read_however_it_is_written(written: str, value: dict[str, Any]) -> None:
    read = as_object(written)
    assert read is not None
    assert json.loads(read) == value
    read.encode()


@pytest.mark.parametrize(
    "written", ["[]", "1", "Oslo", '"Oslo"', '{"a": ', '{"a": NaN}', "[" * 100_000, '{"a": 1} {"b": 2}']
)
def test_text_that_is_not_an_object_is_sent_inside_one(written: str) -> None:
    assert as_object(written) is None
    assert orjson.loads(object_to_send(written)) == {"INVALID_JSON": written}


def test_a_single_surrogate_does_not_break_a_later_request() -> None:
    assert orjson.loads(object_to_send('{"a": \ud83c')) == {"INVALID_JSON": '{"a": \ufffd'}
    assert joined_surrogates("\ud83c\udf1e") == "\U0001f31e"


@given(OBJECTS)
def test_a_valid_object_is_unchanged(value: dict[str, Any]) -> None:
    text = json.dumps(value)
    assert as_object(text) == object_to_send(text) == text


@given(OBJECTS, st.sampled_from(["{}", "```\n{}\n```", "```json\n{}```", " {}\n"]))
def test_an_object_with_trailing_commas_keeps_its_value(value: dict[str, Any], around: str) -> None:
    text = json.dumps(value, indent=1)
    loose = text.replace("\n}", ",\n}").replace("\n]", ",\n]")
    assert json.loads(as_object(around.replace("{}", loose)) or "null") == value


@given(st.text())
def test_any_text_is_sent_as_an_object(text: str) -> None:
    assert isinstance(orjson.loads(object_to_send(text)), dict)
