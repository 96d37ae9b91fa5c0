"""Pieces of HTML that read well in light and dark notebooks: escaped, without control characters, of limited size.

Styles are inline and colours are mixed with those of the page, because front ends remove style sheets from notebooks
that they do not trust, and each has another way to say that it is dark.
"""

from __future__ import annotations

import html

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
    style = f"display:inline-flex;width:{width};height:.7em;border-radius:.35em;overflow:hidden;background:{FAINT}"
    return element("span", parts, style)
