"""Limits on wall-clock time.

A loaded machine exceeds a strict limit without a defect.  A test with `@timed` therefore runs twice: in the default
suite with limits that only a hang exceeds, and with `-m timing` with the strict ones.
"""

from __future__ import annotations

import pytest

timed = pytest.mark.parametrize(
    "slack", [pytest.param(10.0, id="live"), pytest.param(1.0, id="strict", marks=pytest.mark.timing)]
)
"""Passes `slack`, the factor by which a test multiplies its strict limits."""
