"""The wait that a refusal asks for, in each form that providers use."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchray.models.asked_waits import asked_wait_s, duration_s

NOW = 1_771_400_000.0
RETRY_INFO = '[{"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "31.5s"}]}}]'


@pytest.mark.parametrize(
    ("headers", "body", "wait_s"),
    [
        ({"retry-after": "60"}, "", 60.0),
        ({"retry-after": "2s"}, "", 2.0),
        ({"retry-after": "1, 3"}, "", 3.0),
        ({"retry-after": "1771400090"}, "", 90.0),
        ({"retry-after": "60", "x-ratelimit-reset-requests": "1s"}, "try again in 5s", 60.0),
        ({"x-ratelimit-reset-requests": "6m0s"}, "", 360.0),
        ({"x-ratelimit-reset-tokens": "20ms"}, "", 0.02),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2m59.56s",
                "x-ratelimit-remaining-tokens": "1000",
                "x-ratelimit-reset-tokens": "9m",
            },
            "",
            179.56,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "7",
                "anthropic-ratelimit-requests-reset": "2026-02-18T07:35:00Z",
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2026-02-18T07:34:10Z",
            },
            "",
            1_771_400_050.0 - NOW,
        ),
        ({"x-ratelimit-reset": "1771400042000"}, "", 42.0),
        ({}, '{"error": {"metadata": {"headers": {"X-RateLimit-Reset": "1771400042000"}}}}', 42.0),
        ({}, "Rate limit reached on tokens per min. Please try again in 6.2s. Visit", 6.2),
        ({}, "Please try again in 1m30.5s.", 90.5),
        ({}, RETRY_INFO, 31.5),
    ],
)
def test_each_form_of_a_429_is_read(headers: dict[str, str], body: str, wait_s: float) -> None:
    assert asked_wait_s(429, headers, body, NOW) == pytest.approx(wait_s)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (429, {}, ""),
        (429, {"retry-after": "soon"}, "slow down"),
        (429, {"retry-after": "1771300000"}, ""),
        (429, {"x-ratelimit-reset-requests": "0s"}, ""),
        (429, {}, RETRY_INFO.replace('"details"', '"quotaId": "GenerateRequestsPerDayPerProject", "details"')),
        (500, {"x-ratelimit-reset-requests": "6m0s"}, "try again in 5s"),  # sent with every answer, for no reason
    ],
)
def test_a_refusal_that_names_no_time_asks_for_none(status: int, headers: dict[str, str], body: str) -> None:
    assert asked_wait_s(status, headers, body, NOW) is None


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-reset", "x-ratelimit-reset-a"]), st.text()), st.text()
)
def test_any_text_gives_a_positive_wait_or_none(headers: dict[str, str], body: str) -> None:
    wait_s = asked_wait_s(429, headers, body, NOW)
    assert wait_s is None or wait_s > 0


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 99), st.integers(0, 59), st.floats(0, 59).map(lambda n: round(n, 3)))
def test_a_duration_is_the_sum_of_its_parts(hours: int, minutes: int, seconds: float) -> None:
    assert duration_s(f"{hours}h{minutes}m{seconds:.3f}s") == pytest.approx(hours * 3600 + minutes * 60 + seconds)
