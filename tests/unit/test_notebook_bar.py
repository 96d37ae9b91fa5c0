"""The bar of a notebook, without a kernel: what is displayed, and what is left of it."""

from __future__ import annotations

from typing import Any

import pytest

from batchray.schema.progress import Progress
from batchray.views import progress_display
from batchray.views.notebook_bar import notebook_bar
from batchray.views.progress_display import show_progress


class Frontend:
    """Records what a kernel sends to its front end."""

    def __init__(self) -> None:
        self.sent: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Frontend:
        assert raw
        assert display_id
        return self.update(bundle, raw=True)

    def update(self, bundle: dict[str, str], *, raw: bool) -> Frontend:
        assert raw
        self.sent.append(bundle)
        return self


@pytest.fixture
def frontend(monkeypatch: pytest.MonkeyPatch) -> Frontend:
    fake = Frontend()
    monkeypatch.setattr("IPython.display.display", fake.display)
    return fake


class Job:
    """A job with one outcome more each time it is looked at, and an error that is HTML."""

    is_started, is_paused, in_flight = True, False, 1
    waits: tuple[()] = ()
    newest_failure: Any = {"index": 0, "type": "ValueError", "message": "<script>\x1b[31m\x07"}  # noqa: RUF012

    def __init__(self, raised: type[BaseException] | None = None) -> None:
        self._progress, self._raised = Progress(total=3), raised

    @property
    def is_done(self) -> bool:
        return self._progress.done >= 2

    def progress_now(self) -> Progress:
        self._progress.record("succeeded", {}, {})
        if self._raised and self._progress.done == 2:
            raise self._raised
        return self._progress


@pytest.mark.parametrize("raised", [None, KeyboardInterrupt])
def test_nothing_is_left_of_the_bar(
    raised: type[BaseException] | None, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_display, "_is_notebook", lambda: True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    try:
        show_progress(Job(raised))
    except KeyboardInterrupt:
        assert raised
    assert any("1 of 3 done" in bundle["text/html"] for bundle in frontend.sent)
    assert frontend.sent[-1] == {"text/html": "", "text/plain": ""}


def test_the_bar_escapes_what_requests_say(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_display, "_is_notebook", lambda: True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    show_progress(Job())
    for bundle in frontend.sent:
        assert "<script>" not in bundle["text/html"]
        assert not {"\x1b", "\x07"} & set("".join(bundle.values()))
    assert any("&lt;script&gt;" in bundle["text/html"] for bundle in frontend.sent)


def test_an_unchanged_bar_is_not_sent_again(frontend: Frontend) -> None:
    with notebook_bar() as draw:
        for share in (0.5, 0.5, 0.5, 1.0):
            draw(share, ["line"])
    assert len(frontend.sent) == 4
