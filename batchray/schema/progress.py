"""Progress of a job: counts, and histograms of durations with percentiles.  Its size does not grow with the job."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

# A bucket spans one sixteenth of a doubling: a percentile is at most 4.4 % above the true value.
_PER_DOUBLING = 16


class Percentiles(NamedTuple):
    """Percentiles of a duration in seconds, from a histogram: at most 4.4 % too high; `max` is exact."""

    p50: float
    p95: float
    p99: float
    max: float

    def __repr__(self) -> str:
        """Return the seconds with three significant digits, or whole ones from 1000 on."""
        shown = (
            f"{name}={value:.0f}" if value >= 999.5 else f"{name}={value:.3g}" for name, value in self._asdict().items()
        )
        return f"Percentiles({', '.join(shown)})"


@dataclass
class Histogram:
    """Counts of durations in logarithmic buckets, as in DDSketch with gamma = 2^(1/16).

    At most 1,024 buckets for any 64-bit nanosecond values.
    """

    buckets: dict[int, int] = field(default_factory=dict)
    max_ns: int = 0

    def add(self, duration_ns: int, n: int = 1) -> None:
        """Count `n` equal durations."""
        bucket = math.ceil(math.log2(duration_ns) * _PER_DOUBLING) if duration_ns > 0 else 0
        self.buckets[bucket] = self.buckets.get(bucket, 0) + n
        if duration_ns > self.max_ns:
            self.max_ns = duration_ns

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.buckets.values())

    def percentile(self, q: float) -> float:
        """Return the nearest-rank `q`-th percentile in seconds, 0 < q <= 100; NaN if there are none.

        Source: Hyndman & Fan, The American Statistician 50 (1996), definition 1, on the buckets' upper bounds.
        """
        if not 0 < q <= 100:
            raise ValueError(f"need 0 < q <= 100, got {q!r}")
        rank = math.ceil(q / 100 * self.count)
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return float(min(2.0 ** (bucket / _PER_DOUBLING), self.max_ns)) / 1e9
        return math.nan

    def percentiles(self) -> Percentiles:
        """Return the percentiles that reports show."""
        longest = self.max_ns / 1e9 if self.buckets else math.nan
        return Percentiles(self.percentile(50), self.percentile(95), self.percentile(99), longest)

    def plus(self, other: Histogram) -> Histogram:
        """Return the histogram of the durations of both."""
        buckets = Counter(self.buckets)
        buckets.update(other.buckets)
        return Histogram(dict(buckets), max(self.max_ns, other.max_ns))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads back."""
        return {"max_ns": self.max_ns, "buckets": {str(bucket): n for bucket, n in sorted(self.buckets.items())}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Histogram:
        """Read what `to_dict` wrote."""
        return cls({int(bucket): n for bucket, n in data["buckets"].items()}, data["max_ns"])


STATUSES = ("succeeded", "errored", "canceled", "expired")
TOKENS = ("prompt_tokens", "completion_tokens")
TIMINGS = ("queued", "ttft", "duration")
_FIELDS_OF_TIMINGS = tuple((name, f"{name}_ns") for name in TIMINGS)


def measured(queued_ns: int | None, ttft_ns: int | None, duration_ns: int | None) -> Mapping[str, int | None]:
    """Return the durations of an outcome by name; none if its item ended with the job, without an answer."""
    return {"queued_ns": queued_ns, "ttft_ns": ttft_ns, "duration_ns": duration_ns} if duration_ns else {}


@dataclass
class Progress:
    """Counts by outcome, tokens and timings of a job.  `total` is the number of its items.

    `prompt_tokens` include `cached_input_tokens`; `completion_tokens` include `reasoning_tokens`.
    """

    total: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    prompt_tokens: int = 0
    completion_tokens: int = 0
    n_steps: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    timings: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in TIMINGS})

    @property
    def done(self) -> int:
        """Items that have an outcome."""
        return sum(self.counts.values())

    @property
    def failed(self) -> int:
        """Items whose outcome is not `succeeded`."""
        return self.done - self.counts["succeeded"]

    def record(self, status: str, timing: Mapping[str, int | None], usage: Mapping[str, int]) -> None:
        """Count one outcome.  `timing` holds `queued_ns`, `ttft_ns` and `duration_ns`; None is left out."""
        self.counts[status] += 1
        self.prompt_tokens += usage.get("prompt_tokens", 0)
        self.completion_tokens += usage.get("completion_tokens", 0)
        self.n_steps += usage.get("step_count", 0)
        self.cached_input_tokens += usage.get("cached_input_tokens", 0)
        self.reasoning_tokens += usage.get("reasoning_tokens", 0)
        for name, field_name in _FIELDS_OF_TIMINGS:
            duration_ns = timing.get(field_name)
            if duration_ns is not None:
                self.timings[name].add(duration_ns)

    def plus(self, other: Progress, total: int) -> Progress:
        """Return the progress of the outcomes of both, of a job with `total` items."""
        return Progress(
            total,
            {status: self.counts[status] + other.counts[status] for status in STATUSES},
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.n_steps + other.n_steps,
            self.cached_input_tokens + other.cached_input_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            {name: self.timings[name].plus(other.timings[name]) for name in TIMINGS},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads back."""
        return {
            "total": self.total,
            "counts": dict(self.counts),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "n_steps": self.n_steps,
            "cached_input_tokens": self.cached_input_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "timings": {name: histogram.to_dict() for name, histogram in self.timings.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        """Read what `to_dict` wrote, of this version or another.

        An older one wrote neither cached nor reasoning tokens, which are then 0; what a newer one adds is left out.
        """
        timings = {name: Histogram.from_dict(data["timings"][name]) for name in TIMINGS}
        known = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        return cls(**{**known, "counts": dict(data["counts"]), "timings": timings})
