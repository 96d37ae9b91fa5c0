"""Confidence intervals of means, by the percentile bootstrap."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RESAMPLES = 2_000
_CHUNK = 1_000_000
_MANY = 20_000
"""From this number of values on, the resampled means are normal to more digits than anyone reads."""


class Interval(NamedTuple):
    """A mean and its interval; all are NaN without values."""

    mean: float
    low: float
    high: float


def interval_of_mean(values: NDArray[np.float64], seed: int, level: float = 0.95) -> Interval:
    """Return the mean of independent values and its bootstrap interval.  The same seed gives the same interval.

    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    import numpy as np

    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(values.mean())
    tail = (1 - level) / 2
    if len(values) >= _MANY:
        from statistics import NormalDist

        half = NormalDist().inv_cdf(1 - tail) * float(values.std()) / len(values) ** 0.5
        return Interval(mean, mean - half, mean + half)
    low, high = np.quantile(_resampled_means(values, seed), [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    import numpy as np

    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(values))  # resamples at once, to bound the memory
    parts = [
        values[random.integers(0, len(values), (min(rows, _RESAMPLES - done), len(values)))].mean(axis=1)
        for done in range(0, _RESAMPLES, rows)
    ]
    return np.concatenate(parts)
