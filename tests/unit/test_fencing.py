"""Writes about a running job need the fencing token that only taking its lease gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

from batchray.store import JobRecord, LedJob
from batchray.store.conversations import Conversations
from batchray.store.jobs import Jobs
from batchray.store.leases import Leases
from batchray.store.outcomes import Outcomes

FENCED: list[Callable[..., Any]] = [
    Outcomes.write,
    Outcomes.end_unfinished,
    Jobs.end,
    Conversations.load,
    Leases.renew,
    Leases.requested,
    Leases.release,
    Leases.check,
]


@pytest.mark.parametrize("method", FENCED, ids=lambda method: method.__qualname__)
def test_a_fenced_write_takes_no_job_that_was_only_read(method: Callable[..., Any]) -> None:
    assert get_type_hints(method)["job"] is LedJob  # so that the type checker refuses a JobRecord
    assert not issubclass(JobRecord, LedJob)


@pytest.mark.parametrize("method", [Jobs.start, Jobs.take_over, Leases.take], ids=lambda method: method.__qualname__)
def test_only_taking_a_lease_gives_the_token(method: Callable[..., Any]) -> None:
    assert get_type_hints(method)["return"] is LedJob


@pytest.mark.parametrize(
    "method", [Jobs.get, Jobs.find, Jobs.unended, Jobs.end], ids=lambda method: method.__qualname__
)
def test_reading_a_job_gives_no_token(method: Callable[..., Any]) -> None:
    assert get_type_hints(method)["return"] in (JobRecord, list[JobRecord])
