"""A result in a terminal: the conversation with its tool calls, without control characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from batchray.schema import Result
from batchray.views.plain_text import clipped, in_short, plain
from batchray.views.trajectory import Kind, Turn, figures, headline, read_turns, shown_turns

if TYPE_CHECKING:
    from rich.console import Console

_MAX_CHARS = 4_000
_STYLES: Mapping[Kind, str] = {
    "system": "dim",
    "user": "blue",
    "assistant": "green",
    "reasoning": "dim",
    "tool": "yellow",
    "approval": "yellow",
    "output": "dim",
    "error": "red",
}


def print_trajectory(result: Result, console: Console, *, is_full: bool = False) -> None:
    """Print a result's turns, then its usage and timing.  Long texts and many turns are cut unless `is_full`."""
    from rich.text import Text

    console.print(Text(plain(headline(result)), "bold"))
    first, n_left_out, last = shown_turns(read_turns(result), is_full)
    for turn in first:
        _print_turn(turn, console, is_full)
    if n_left_out:
        console.print(Text(f"... {n_left_out:,} turns are left out; --full prints them ...", "dim"))
    for turn in last:
        _print_turn(turn, console, is_full)
    console.print()
    console.print(Text(plain(figures(result)), "dim"))


def _print_turn(turn: Turn, console: Console, is_full: bool) -> None:
    from rich.text import Text

    style = "red" if turn.is_failed else _STYLES[turn.kind]
    note = f" ({turn.note})" if turn.note else ""
    called = "tool " if turn.kind == "tool" else ""
    console.print()
    console.print(Text(f"[{called}{in_short(turn.title)}]{plain(note)}", f"bold {style}"))
    if turn.text:
        # The terminal wraps lines, so that a text can be copied as it is.
        console.print(Text(_cut(turn.text, is_full), "dim" if turn.kind == "reasoning" else ""), soft_wrap=True)
    for name, text in turn.details:
        shown = _cut(text, is_full)
        console.print(Text(f"{name}:", style), Text(shown), sep="\n" if "\n" in shown else " ", soft_wrap=True)


def _cut(text: str, is_full: bool) -> str:
    return plain(text if is_full else clipped(text, _MAX_CHARS)).rstrip("\n")
