"""The live bar in a notebook: one output that is updated in place, and taken away at the end or at an interrupt.

It needs only the messages `display_data` and `update_display_data` of Jupyter, which JupyterLab, VS Code and Colab
show without further packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from batchray.views.html import BLUE, element, escaped, stacked_bar
from batchray.views.plain_text import plain


@contextmanager
def notebook_bar() -> Iterator[Callable[[float, Sequence[str]], None]]:
    """Yield a function that draws a share, from 0 to 1, and lines of text.  After the block nothing of it is left."""
    from IPython import display as ipython

    display: Any = ipython  # IPython is untyped
    shown = _bundle(0.0, ["starting"])
    handle = display.display(shown, raw=True, display_id=True)

    def draw(share: float, lines: Sequence[str]) -> None:
        nonlocal shown
        bundle = _bundle(share, lines)
        if bundle != shown:  # each message is kept by the front ends that reload notebooks
            shown = bundle
            handle.update(bundle, raw=True)

    try:
        yield draw
    finally:
        handle.update({"text/html": "", "text/plain": ""}, raw=True)


def _bundle(share: float, lines: Sequence[str]) -> dict[str, str]:
    """Return the bar for front ends that show HTML, and for those that show text only."""
    text = "<br>".join(escaped(line) for line in lines)
    bar = element("div", f"{stacked_bar([(share, BLUE)])} {text}", "overflow-wrap:anywhere")
    return {"text/html": bar, "text/plain": plain("; ".join(lines))}
