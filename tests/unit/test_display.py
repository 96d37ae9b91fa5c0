from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from batchray.schema import new_job_id
from batchray.schema.progress import Percentiles, Progress
from batchray.store import FailureKind, JobRecord, NewItem, NewJob, Store, run_all
from batchray.views.progress_display import View, show_progress
from batchray.views.summary import clock, duration, share, summary


class Watched:
    """A job that is one outcome further each time it is looked at."""

    is_started, is_paused = True, False
    waits: tuple[()] = ()
    newest_failure = None

    def __init__(self, total: int) -> None:
        self._progress = Progress(total=total)

    @property
    def is_done(self) -> bool:
        return self._progress.done >= self._progress.total - 1

    @property
    def in_flight(self) -> int:
        return 1

    def progress_now(self) -> Progress:
        self._progress.record("errored" if self._progress.done == 0 else "succeeded", {}, {"prompt_tokens": 500})
        return self._progress


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (
            View(total=2000, done=1500, failed=3, in_flight=256, tokens=12_345, rate=5.0),
            "1,500 of 2,000 done, 3 failed, 256 in flight, 5.0/s, ETA 1:40, 12,345 tokens",
        ),
        (View(10, 0, 0, 2, 0, 0.0), "0 of 10 done, 0 failed, 2 in flight, 0.0/s, 0 tokens"),
        (View(1000, 0, 0, 0, 0, 0.0, is_started=False), "1,000 requests accepted, starting"),
        (View(10, 10, 0, 0, 7, 2.0), "10 of 10 done, 0 failed, 0 in flight, 2.0/s, 7 tokens"),
    ],
)
def test_a_moment_is_one_line(view: View, line: str) -> None:
    assert view.line() == line


WAIT = {
    "provider": "openai",
    "kind": "rate_limited",
    "reason": "status 429: slow\ndown",
    "wait_s": 34.6,
    "n_waiting": 40,
}
FAILURE = {"index": 1234, "type": "ValueError", "message": "no \x1b[31mgood"}


def test_the_notes_name_the_provider_that_holds_a_job_back_and_its_newest_error() -> None:
    view = View(100, 10, 1, 60, 0, 1.0, waits=[WAIT], newest_failure=FAILURE)
    assert view.notes() == [
        "openai is rate limited: 40 of 60 in flight wait, next call in 35 s (status 429: slow down)",
        "newest error: request 1,234: ValueError: no good",
    ]


def test_a_paused_job_says_so_instead_of_its_rate_and_end() -> None:
    assert (
        View(100, 10, 1, 0, 0, 1.0, is_paused=True).line() == "10 of 100 done, 1 failed, 0 in flight, paused, 0 tokens"
    )


def test_an_end_is_forecast_only_from_enough_outcomes() -> None:
    assert "ETA" not in View(100, 1, 0, 9, 0, 5.0, has_evidence=False).line()


def test_without_a_rate_the_remaining_time_is_infinite() -> None:
    assert View(10, 0, 0, 2, 0, 0.0).eta_s == math.inf


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90_061, "25:01:01")],
)
def test_a_clock_has_hours_only_from_one_hour_on(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (math.nan, "-"),
        (0.0, "0.0 ms"),
        (0.0042, "4.2 ms"),
        (0.25, "250 ms"),
        (1.5, "1.50 s"),
        (119.0, "119.00 s"),
        (120.0, "2:00"),
    ],
)
def test_a_duration_has_a_fitting_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_off_a_terminal_is_a_line_at_the_start_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress(Watched(3))
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert first.startswith("1 of 3 done, 1 failed, 1 in flight, ")
    assert last.startswith("3 of 3 done, 1 failed, 0 in flight, ")
    assert last.endswith("1,500 tokens")


def test_a_job_that_is_done_already_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress(Watched(1))
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("terminal", ["dumb", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    terminal: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", terminal)
    show_progress(Watched(3))
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2
    assert err.isascii()
    assert "\x1b" not in err


def test_a_narrow_terminal_shows_the_counts_instead_of_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    show_progress(Watched(2))
    err = capsys.readouterr().err
    assert "\u2501" not in err
    assert "2 of 2 done, 1 failed, 0 in flight" in err


def test_progress_on_a_terminal_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    show_progress(Watched(2))
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 of 2 done, 1 failed" in err
    assert "━" in err


@pytest.mark.parametrize(("count", "text"), [(0, "0.0%"), (1, "0.1%"), (999, "99.9%"), (1000, "100.0%")])
def test_a_share_is_100_percent_only_when_it_is_all(count: int, text: str) -> None:
    assert share(count, 1000) == text
    assert share(999_999, 1_000_000) == "99.9%"
    assert share(0, 0) == "0.0%"


def printed(record: JobRecord, timing: dict[str, Percentiles], *failures: FailureKind) -> str:
    file = io.StringIO()
    summary(record, record.status, timing, failures, Console(file=file, width=100))
    return file.getvalue()


def test_a_summary_shows_outcomes_durations_and_tokens(tmp_path: Path) -> None:
    progress = Progress(total=4)
    for _ in range(3):
        progress.record("succeeded", {"queued_ns": 2_000_000, "duration_ns": 1_500_000_000}, {})
    with Store.open(tmp_path) as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b"{}")] * 4)
        job = store.jobs.start(job_id)
        run_all(store.outcomes.end_unfinished(job, "canceled", "cancelled", None))
        ended = store.jobs.end(job, "cancelled", "cancelled", progress, None, 61_000_000_000)
    failures = [FailureKind("llm_api_error", f"kind_{n}", 1000 - n, "why " * 100) for n in range(10)]
    text = printed(ended, {name: each.percentiles() for name, each in progress.timings.items()}, *failures)
    assert "4 requests: job cancelled" in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "succeeded 0 0.0%" in rows
    assert "canceled 4 100.0%" in rows
    assert not any(row.startswith("expired") for row in rows)
    assert any(row.startswith("llm_api_error 1,000 kind_0: why why why") for row in rows)
    assert "... 2 more kinds" in rows
    assert "before its start 2.0 ms 2.0 ms 2.0 ms" in rows
    assert "start to first token - - -" in rows
    assert "start to end 1.50 s 1.50 s 1.50 s" in rows
    assert "took: 61.00 s from the first start to the last end" in rows


@pytest.mark.parametrize("message", ["no [/such] [red]tag", "two\nlines \x1b[31m", "x" * 10_000, ""])
def test_any_error_can_be_shown(message: str, tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b"{}")])
        job = store.jobs.get(job_id)
    timing = {name: each.percentiles() for name, each in Progress().timings.items()}
    text = printed(job, timing, FailureKind("error", "ValueError", 1, message))
    (row,) = (line for line in text.splitlines() if "ValueError" in line)
    assert row.split()[:3] == ["error", "1", "ValueError:"]
    assert "\x1b" not in text
    assert message.replace("\x1b[31m", "").count("[") == row.count("[")  # text in brackets is no markup


def test_a_summary_of_an_unfinished_job_says_how_much_is_not_done(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b"{}")] * 4)
        job = store.jobs.start(job_id)
    text = printed(job, {name: each.percentiles() for name, each in Progress().timings.items()})
    assert "not done 4 100.0%" in [" ".join(line.split()) for line in text.splitlines()]
    assert "took:" not in text
    assert "failures" not in text
