from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchray.schema.progress import STATUSES, Histogram, Percentiles, Progress

durations = st.integers(0, 2**63 - 1)
TOO_HIGH = 2 ** (1 / 16)


def histogram(values: list[int]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(st.lists(durations, min_size=1), st.floats(0.01, 100))
@example([1, 2**63 - 1], 100.0)
def test_a_percentile_is_at_most_one_sixteenth_of_a_doubling_too_high(values: list[int], q: float) -> None:
    true_ns = sorted(values)[math.ceil(q / 100 * len(values)) - 1]
    read_ns = histogram(values).percentile(q) * 1e9
    rounding = 1e-9
    assert max(true_ns, 1) * (1 - rounding) <= max(read_ns, 1) <= max(true_ns, 1) * TOO_HIGH * (1 + rounding)


@given(st.lists(durations))
def test_a_histogram_survives_json(values: list[int]) -> None:
    made = histogram(values)
    assert Histogram.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_a_histogram_of_any_durations_stays_small() -> None:
    made = histogram([n for power in range(63) for n in (2**power, 2**power + 2**power // 3, 2 ** (power + 1) - 1)])
    assert len(made.buckets) <= 1024
    assert max(histogram([2**63 - 1]).buckets) <= 1024


def test_the_longest_duration_is_exact() -> None:
    assert histogram([1_000_000_007, 5]).percentiles().max == 1.000000007


def test_percentiles_are_printed_with_three_digits() -> None:
    assert str(Percentiles(0.0123456, 1.23456, 123.456, 12345.6)) == (
        "Percentiles(p50=0.0123, p95=1.23, p99=123, max=12346)"
    )
    assert repr(Histogram().percentiles()) == "Percentiles(p50=nan, p95=nan, p99=nan, max=nan)"


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert all(math.isnan(value) for value in Histogram().percentiles())


@pytest.mark.parametrize("q", [0, -1, 100.1, math.nan])
def test_a_percentile_out_of_range_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="need 0 < q <= 100"):
        Histogram().percentile(q)


@given(st.lists(st.tuples(st.sampled_from(STATUSES), durations, st.none() | durations, st.integers(0, 10**6))))
def test_counts_tokens_and_timings_add_up(outcomes: list[tuple[str, int, int | None, int]]) -> None:
    progress = Progress(total=len(outcomes))
    for status, duration_ns, ttft_ns, n in outcomes:
        usage = {"prompt_tokens": n, "completion_tokens": 2 * n, "step_count": 1}
        usage |= {"cached_input_tokens": n, "reasoning_tokens": n}
        progress.record(status, {"queued_ns": 1, "ttft_ns": ttft_ns, "duration_ns": duration_ns}, usage)
    assert progress.done == progress.n_steps == progress.timings["duration"].count == len(outcomes)
    assert progress.timings["ttft"].count == sum(ttft is not None for _, _, ttft, _ in outcomes)
    assert progress.failed == sum(status != "succeeded" for status, *_ in outcomes)
    assert progress.cached_input_tokens == progress.reasoning_tokens == progress.prompt_tokens
    assert progress.completion_tokens == 2 * progress.prompt_tokens == 2 * sum(n for *_, n in outcomes)
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress


def test_the_progress_that_an_older_version_stored_can_be_read() -> None:
    stored = Progress(total=2, prompt_tokens=7).to_dict()
    for name in ("cached_input_tokens", "reasoning_tokens"):
        del stored[name]
    assert Progress.from_dict(stored) == Progress(total=2, prompt_tokens=7)


def test_two_progresses_share_nothing() -> None:
    one, other = Progress(), Progress()
    one.record("succeeded", {"duration_ns": 1}, {})
    assert other == Progress()
    copy = Progress.from_dict(one.to_dict())
    copy.record("errored", {"duration_ns": 1}, {})
    assert one.done == 1


def test_percentiles_show_three_digits_and_no_exponent() -> None:
    assert (
        repr(Percentiles(0.00123456, 1.23456, 999.7, 12345.6))
        == "Percentiles(p50=0.00123, p95=1.23, p99=1000, max=12346)"
    )


def test_stored_progress_of_a_newer_version_is_read_without_its_additions() -> None:
    stored = Progress(total=3, prompt_tokens=5, reasoning_tokens=2).to_dict()
    assert Progress.from_dict({**stored, "of_a_newer_version": 1}) == Progress.from_dict(stored)
