"""The picture of a job, and the table of a comparison."""

from __future__ import annotations

import math
import pickle
import re
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchray
from batchray import Agent, AgentRequest, Job
from batchray.errors import ConfigError
from batchray.experiments.comparison_frame import Comparison
from batchray.schema import new_job_id
from batchray.schema.progress import Progress
from batchray.store import NewItem, NewJob, Store

TITLES = [
    "outcomes per second",
    "outcomes",
    "start to end of a request",
    "start to first token",
    "tokens of a request",
]


@pytest.fixture
def waiting(tmp_path: Path) -> Job:
    """Return a job that nothing has run."""
    with Store.open(tmp_path / "data") as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b"{}")] * 4)
    return batchray.attach(job_id, tmp_path / "data")


def ended(n: int, start: datetime) -> tuple[Progress, list[Counter[tuple[str, str, bytes]]]]:
    """Return the progress of n outcomes, and their ends as a store has them."""
    progress, ends = Progress(n), []
    for index in range(n):
        usage = {"prompt_tokens": 100 + index, "completion_tokens": index % 7}
        finished_at = (start + timedelta(seconds=index)).isoformat(timespec="microseconds")
        status = "errored" if index % 10 == 0 else "succeeded"
        progress.record(status, {"ttft_ns": 10**6, "duration_ns": 10**7 * (index + 1)}, usage)
        ends.append(Counter({(finished_at, status, orjson.dumps(usage)): 1}))
    return progress, ends


def texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_figure_of_a_job_without_outcomes_says_so(waiting: Job) -> None:
    figure = waiting.plot()
    assert [axes.get_title("left") for axes in figure.axes] == TITLES
    assert texts(figure) == ["no outcomes yet", "4", "not measured", "not measured", "no tokens"]


@pytest.mark.parametrize("n", [1, 1500])
def test_a_figure_shows_counts_and_percentiles(n: int, waiting: Job) -> None:
    from batchray.views.plots import job_figure

    record = waiting.record()
    figure = job_figure(record, "running", *ended(n, datetime.fromisoformat(record.created_at)))
    assert "not measured" not in texts(figure)
    legend = figure.axes[2].get_legend()
    assert legend is not None
    assert [text.get_text().split()[0] for text in legend.get_texts()] == ["p50", "p95"]
    assert n > 1 or figure._repr_png_().startswith(b"\x89PNG")


def test_a_figure_chooses_no_backend(waiting: Job) -> None:
    import matplotlib as mpl

    def chosen() -> tuple[Any, bool]:
        return dict.__getitem__(mpl.rcParams, "backend"), "matplotlib.pyplot" in sys.modules

    before = chosen()
    waiting.plot()
    assert chosen() == before


def test_without_matplotlib_the_error_says_what_to_install(waiting: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "batchray.views.plots")
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ConfigError, match=r"pip install 'batchray\[plot\]'"):
        waiting.plot()


@given(st.lists(st.tuples(st.floats(-10, 10**7), st.booleans()), max_size=50))
def test_a_timeline_of_any_length_keeps_every_outcome_in_few_bins(outcomes: list[tuple[float, bool]]) -> None:
    from batchray.views.plots import _Timeline

    timeline = _Timeline(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    for elapsed, is_success in outcomes:
        timeline.add(timeline.start_s + elapsed, is_success)
    good, bad, width_s = timeline.shown()
    assert sum(good) == sum(is_success for _, is_success in outcomes)
    assert sum(good) + sum(bad) == len(outcomes)
    assert len(good) == len(bad) <= 64
    assert all(elapsed <= len(good) * width_s + 1e-6 for elapsed, _ in outcomes)


def echo(request: AgentRequest) -> str:
    if "refused" in str(request.input):
        raise ValueError("refused")
    return str(request.input)


def shout(request: AgentRequest) -> str:
    return str(request.input).upper()


@pytest.fixture
def comparison(tmp_path: Path) -> pd.DataFrame:
    agents = batchray.variants(Agent(id="fn", run=echo), run={"<script>\x1b": echo, "shout": shout})
    requests = batchray.cross(["one", "two", "refused"], agents)
    job = batchray.run(requests, agents, executor="local", progress=False, data_dir=tmp_path / "data")
    return batchray.compare(job, by="run")


def test_a_comparison_shows_what_was_measured(comparison: pd.DataFrame) -> None:
    shown = comparison._repr_html_()  # type: ignore[operator]
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert "\x1b" not in shown
    assert "+33.3%" in shown
    assert "score" not in shown  # nothing was scored


def test_a_comparison_names_its_baseline_its_intervals_and_its_pairs(tmp_path: Path) -> None:
    agents = batchray.variants(Agent(id="fn", run=echo), run={"echo": echo, "shout": shout})
    requests = batchray.cross(["one", "two", "refused"], agents)
    job = batchray.run(requests, agents, executor="local", progress=False, data_dir=tmp_path / "data")
    rated = batchray.apply(job, lambda result: len(result.text), executor="local", progress=False)
    compared = batchray.compare(rated, by="run", baseline="shout", level=0.9)
    assert compared[["pairs", "score_pairs"]].to_numpy().tolist() == [[3, 2], [3, 3]]
    html = re.sub("<[^>]*>", " ", compared._repr_html_() or "")  # type: ignore[operator]
    for shown in (html, str(compared), repr(compared)):
        words = " ".join(shown.split())
        assert re.search("shout (?:3 100.0% 0 )?.*\\(baseline\\)", words)
        assert "success minus baseline" in " ".join(html.split())
        assert "minus baseline: the mean difference to the baseline, shout" in words
        assert "the 90 % bootstrap interval" in words
        assert "(2 scored)" in words
    lines = str(compared).splitlines()
    assert max(map(len, lines)) <= 120
    assert str(pickle.loads(pickle.dumps(compared))) == str(compared)
    compared["note"] = 1
    assert "note" in str(compared)  # as pandas prints it


def test_a_comparison_of_long_names_and_numbers_fits_a_terminal(comparison: pd.DataFrame) -> None:
    wide = pd.DataFrame(comparison).assign(
        score=0.123456,
        score_low=0.1,
        score_high=0.4567,
        prompt_tokens=10**6,
        completion_tokens=10**6,
        cost_usd=99.5,
    )
    wide = wide.assign(score_difference=-0.5, score_difference_low=-0.9123, score_difference_high=-0.1234)
    text = str(Comparison(wide.rename(index={"shout": "long " * 30}), baseline=wide.index[0]))
    assert max(map(len, text.splitlines())) <= 120
    assert "\x1b" not in text
    for shown in ("+33.3%", "0.123", "-0.5", "1,000,000 in", "(baseline)", "$99.50", "p95"):
        assert shown in text
    larger = str(Comparison(wide.assign(prompt_tokens=10**12), baseline=wide.index[0]))
    assert "1,000,000,000,000 in" in larger


def test_a_figure_of_a_comparison_has_a_panel_for_what_was_measured(comparison: pd.DataFrame) -> None:
    from batchray.experiments.comparison_figure import comparison_figure

    figure = comparison.figure()  # type: ignore[operator]
    assert [axes.get_title("left") for axes in figure.axes] == ["succeeded", "p50 and p95 of the duration"]
    scored = comparison.assign(
        score=[0.5, 1.0], score_low=[0.4, math.nan], score_high=[0.7, math.nan], cost_usd=[0.001, 2.0]
    )
    figure = comparison_figure(pd.concat([scored] * 20).rename(index={"shout": "$\\frac$ \x1b[31m"}))
    assert [axes.get_title("left") for axes in figure.axes][::3] == ["score, with its interval", "cost"]
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(names) == 30
    assert "\x1b" not in "".join(names)
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("p95_s", [2.1e-7, 3.3e-4, 0.011, 0.9, 4.2, 130, 9000])
def test_the_durations_of_a_figure_have_different_marks(p95_s: float, comparison: pd.DataFrame) -> None:
    from batchray.experiments.comparison_figure import comparison_figure

    figure = comparison_figure(comparison.assign(p50_s=p95_s / 2, p95_s=p95_s))
    figure.draw_without_rendering()
    marks = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    assert len({*marks}) == len(marks) >= 3


def test_a_comparison_is_a_frame_and_parts_of_it_are_plain_ones(comparison: pd.DataFrame) -> None:
    assert isinstance(comparison, Comparison)
    assert type(comparison[["requests"]]) is pd.DataFrame
    assert type(comparison.sort_values("success_rate")) is pd.DataFrame
    copy = pickle.loads(pickle.dumps(comparison))
    pd.testing.assert_frame_equal(copy, comparison)


def test_a_comparison_of_many_groups_shows_only_some(comparison: pd.DataFrame) -> None:
    many = Comparison(pd.concat([pd.DataFrame(comparison)] * 500))
    shown = many._repr_html_()
    assert "950 more groups" in shown
    assert len(shown) < 150_000
