"""A result in a notebook: a conversation with its tool calls folded."""

from __future__ import annotations

from collections.abc import Mapping

from batchray.schema import Result
from batchray.views.html import AMBER, BLUE, FAINT, GREEN, GREY, LINE, RED, element, escaped
from batchray.views.plain_text import in_short
from batchray.views.trajectory import Kind, Turn, figures, headline, read_turns, shown_turns

_MAX_CHARS = 3_000
_MAX_HTML = 80_000
_COLOURS: Mapping[Kind, str] = {
    "system": GREY,
    "user": BLUE,
    "assistant": GREEN,
    "reasoning": GREY,
    "tool": AMBER,
    "approval": AMBER,
    "output": GREY,
    "error": RED,
}
_FOLDED = ("system", "reasoning", "output")


def result_html(result: Result) -> str:
    """Return a result as HTML of at most about 100 kB, whatever is in it."""
    first, n_left_out, last = shown_turns(read_turns(result))
    room = _Room(_MAX_HTML)
    parts = [_turn(turn, room) for turn in first]
    if n_left_out:
        parts.append(element("div", f"... {n_left_out:,} turns are left out ...", f"color:{GREY};margin:.5em 0"))
    parts += [_turn(turn, room) for turn in last]
    colour = GREEN if result.status == "succeeded" else RED
    head = element("div", escaped(headline(result)), f"font-weight:600;border-bottom:2px solid {colour}")
    foot = element("div", escaped(figures(result)), "opacity:.7;font-size:.85em;margin-top:.5em")
    return element("div", head + "".join(parts) + foot, "max-width:60em;line-height:1.45")


class _Room:
    """How many characters of HTML may still be written."""

    def __init__(self, n_chars: int) -> None:
        self._n_left = n_chars

    def text(self, text: str, max_chars: int = _MAX_CHARS) -> str:
        """Return a text as HTML, cut to the room that is left, with a note of what is missing."""
        n_shown = min(max_chars, self._n_left)
        shown = escaped(text[:n_shown])
        self._n_left = max(self._n_left - len(shown), 0)
        n_missing = len(text) - n_shown
        return shown + (element("i", f" ... {n_missing:,} more characters", f"color:{GREY}") if n_missing > 0 else "")


def _turn(turn: Turn, room: _Room) -> str:
    """Return a turn: what is said is open, what is done and thought is folded."""
    colour = RED if turn.is_failed else _COLOURS[turn.kind]
    if turn.kind == "tool":
        content = _details(_call_line(turn, colour), _blocks(turn, room))
    elif turn.kind in _FOLDED:
        start = in_short(turn.text or turn.details[0].text, 80)
        summary = f'{escaped(turn.title)} <span style="opacity:.6">{escaped(start)}</span>'
        content = _details(summary, (_text(room.text(turn.text)) if turn.text else "") + _blocks(turn, room))
    else:
        title = element("div", escaped(in_short(turn.title)), f"color:{colour};font-size:.8em;font-weight:600")
        content = title + _text(room.text(turn.text))
        if turn.details:
            content += _details(escaped(turn.details[0].name), _blocks(turn, room))
    style = f"margin:.4em 0;padding:.3em .7em;border-left:3px solid {colour};background:{FAINT};border-radius:.2em"
    return element("div", content, style)


def _call_line(turn: Turn, colour: str) -> str:
    arguments = next((detail.text for detail in turn.details if detail.name == "arguments"), "")
    shown = f"<code>{escaped(in_short(turn.title))}({escaped(in_short(arguments, 80))})</code>"
    return f"{shown} {element('span', escaped(turn.note), f'color:{colour};font-size:.85em')}"


def _blocks(turn: Turn, room: _Room) -> str:
    return "".join(
        element("div", detail.name, "font-size:.8em;opacity:.7;margin-top:.3em")
        + _text(room.text(detail.text), f"font-family:monospace;font-size:.9em;border:{LINE};padding:.2em .4em")
        for detail in turn.details
    )


def _text(html: str, style: str = "") -> str:
    return element("div", html, f"white-space:pre-wrap;overflow-wrap:anywhere;{style}")


def _details(summary: str, content: str) -> str:
    return f'<details><summary style="cursor:pointer">{summary}</summary>{content}</details>'
