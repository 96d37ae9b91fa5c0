"""Text of models, tools and users made safe to show: no control characters, of limited length."""

from __future__ import annotations

import re

_STYLING = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""The sequences for colours."""
_JOINERS = "\u200c\u200d"
"""Not printable characters, but emoji and several scripts are made with them."""
_UNSHOWN = "\N{REPLACEMENT CHARACTER}"
_SHORT_CHARS = 72


def plain(text: str) -> str:
    """Return a text with its lines and tabs, without colours, and with a replacement for each control character.

    Terminals obey control characters, and those for the direction of writing make a text look like another one.
    """
    if text.isprintable():
        return text
    lines = _STYLING.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(char if _is_shown(char) else _UNSHOWN for char in lines)


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in "\n\t" or char in _JOINERS or (char.isspace() and char > "\x9f")


def clipped(text: str, max_chars: int) -> str:
    """Return the start of a text, with a note of how much is left out."""
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]} ... [{len(text) - max_chars:,} more characters]"


def in_short(message: str, max_chars: int = _SHORT_CHARS) -> str:
    """Return the start of a message as one line without control characters."""
    start = message[: 4 * max_chars]  # a message may have megabytes
    shown = _STYLING.sub("", start)
    line = " ".join("".join(char if char.isprintable() else " " for char in shown).split())
    if len(line) <= max_chars and len(start) == len(message):
        return line
    cut = line[: max_chars - 4]
    words = cut.rpartition(" ")[0]
    return f"{words if len(words) > max_chars // 2 else cut} ..."
