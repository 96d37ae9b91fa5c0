"""The queries of the routes of runs, steps and jobs: pages and filters, as Letta's clients send them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from batchray.schema import Feedback, RunStatus, StopReason
from batchray.schema.base import UtcDatetime
from batchray.server.pagination import Page
from batchray.store import SortOrder


class JobsQuery(Page):
    """Query of a user's batches as jobs.  `ascending` is older than `order`, and deprecated."""

    active: bool = False
    ascending: bool | None = None


class RunsQuery(Page):
    """Query of a user's runs.

    `agent_id` wins over `agent_ids`, and `statuses` over `active`, as in Letta.  No run here has a conversation of its
    own, so with a `conversation_id` there are none.  `ascending` is older than `order`, and deprecated.
    """

    active: bool = False
    agent_id: str | None = None
    agent_ids: tuple[str, ...] = ()
    ascending: bool = False
    background: bool | None = None
    conversation_id: str | None = None
    statuses: tuple[RunStatus, ...] = ()
    stop_reason: StopReason | None = None


class OldestFirst(Page):
    """Query of the messages of a run or step: a page, the oldest first unless `order` says otherwise."""

    order: SortOrder = "asc"


def _not_a_number(value: object) -> object:
    """Refuse a number, which pydantic takes for seconds, or for milliseconds if it is large."""
    if isinstance(value, str) and value.lstrip("+-").replace(".", "", 1).isdecimal():
        raise ValueError("give a time as ISO 8601 has it, such as 2026-01-31T12:00:00Z")
    return value


QueryTime = Annotated[UtcDatetime, BeforeValidator(_not_a_number)]


class StepsQuery(Page):
    """Query of a user's steps.

    `model` is the name of a step's model, with or without its provider.  `tags` are those of the feedback; one of them
    is enough.  Steps here have neither a trace nor a project, so with `trace_ids` or a `project_id` there are none.
    """

    agent_id: str | None = None
    end_date: QueryTime | None = None
    feedback: Feedback | None = None
    has_feedback: bool | None = None
    model: str | None = None
    project_id: str | None = None
    start_date: QueryTime | None = None
    tags: tuple[str, ...] = ()
    trace_ids: tuple[str, ...] = ()
