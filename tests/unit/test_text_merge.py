"""Merges of a text that two writers have edited: nothing that either has written is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.support.text_merge import merge_texts

LINES = st.lists(st.sampled_from("abcdefg"), max_size=6)
TEXTS = LINES.map("\n".join)


@pytest.mark.parametrize(
    ("base", "present", "late", "merged"),
    [
        ("a\nb\nc", "A\nb\nc", "a\nb\nC", "A\nb\nC"),
        ("a\nb\nc", "a\nb\nC", "A\nb\nc", "A\nb\nC"),
        ("a\nb\nc", "a\nc", "a\nb\nc\nd", "a\nc\nd"),
        ("a\nb\nc", "a\nperson\nc", "a\nrun\nc", "a\nperson\nrun\nc"),
        ("a", "a\nperson", "a\nrun", "a\nperson\nrun"),
        ("", "person", "run", "person\nrun"),
        ("", "same", "same", "same"),
        ("a\nb", "", "a\nb\nrun", "run"),
        ("a\nb", "a\nb\nperson", "", "a\nb\nperson"),
    ],
)
def test_two_edits_of_a_text_are_both_in_the_result(base: str, present: str, late: str, merged: str) -> None:
    assert merge_texts(base, present, late) == merged


@given(TEXTS, TEXTS)
def test_if_only_one_side_has_edited_the_merge_is_its_text(base: str, edited: str) -> None:
    assert merge_texts(base, base, edited) == merge_texts(base, edited, base) == edited
    assert merge_texts(base, edited, edited) == edited


@given(LINES, LINES, LINES)
def test_no_line_that_either_edit_adds_is_lost(base: list[str], present: list[str], late: list[str]) -> None:
    merged = set(merge_texts(*map("\n".join, (base, present, late))).split("\n"))
    assert merged >= {*present, *late} - {*base}


@given(LINES, LINES, LINES, LINES)
def test_edits_of_different_places_both_apply(
    before: list[str], first: list[str], second: list[str], after: list[str]
) -> None:
    base = ["1", *before, "2", "3", *after, "4"]
    one = ["1", *first, "2", "3", *after, "4"]
    other = ["1", *before, "2", "3", *second, "4"]
    both = "\n".join(["1", *first, "2", "3", *second, "4"])
    assert merge_texts(*map("\n".join, (base, one, other))) == both
    assert merge_texts(*map("\n".join, (base, other, one))) == both
