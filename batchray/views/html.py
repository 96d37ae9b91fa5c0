"""Pieces of HTML that read well in light and dark notebooks: escaped, without control characters, of limited size.

Styles are inline and colours are mixed with those of the page, because front ends remove style sheets from notebooks
that they do not trust, and each has another way to say that it is dark.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from batchray.views.plain_text import plain

GREEN, RED, BLUE, AMBER, GREY = "#2e9e5b", "#d9483b", "#3b82f6", "#c98a00", "#8b919a"
"""Colours that can be told from white and from black."""
FAINT = "rgba(128,128,128,.14)"
LINE = "1px solid rgba(128,128,128,.35)"


def escaped(text: str) -> str:
    """Return a text as HTML, without control characters."""
    return html.escape(plain(text))


def element(tag: str, content: str, style: str = "") -> str:
    """Return an element around HTML."""
    attribute = f' style="{style}"' if style else ""
    return f"<{tag}{attribute}>{content}</{tag}>"


def stacked_bar(shares: list[tuple[float, str]], width: str = "20em") -> str:
    """Return a horizontal bar of parts, each a share from 0 to 1 and a colour."""
    parts = "".join(
        f'<span style="width:{100 * share:.2f}%;background:{colour}"></span>' for share, colour in shares if share > 0
    )
    size = f"width:{width};max-width:100%;height:.7em;border-radius:.35em"
    return element("span", parts, f"display:inline-flex;{size};overflow:hidden;background:{FAINT}")


_CELL = "text-align:left;padding:.15em .8em .15em 0;vertical-align:top"
_CELLS = f"{_CELL};white-space:nowrap"
_LAST_CELL = f"{_CELL};overflow-wrap:anywhere;min-width:9em"


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Return a table of HTML cells, which scrolls if it is too wide.  Lines break in the last column only.

    Every cell says how it is aligned, because front ends align those of tables to the right.
    """
    head = "".join(element("th", name, f"{_CELLS};border-bottom:{LINE}") for name in heads)
    body = "".join(element("tr", _cells(row)) for row in rows)
    content = (element("thead", element("tr", head)) if heads else "") + element("tbody", body)
    return element("div", element("table", content, "margin:.3em 0"), "overflow-x:auto")


def _cells(row: Sequence[str]) -> str:
    return "".join(element("td", content, _CELLS) for content in row[:-1]) + element("td", row[-1], _LAST_CELL)
