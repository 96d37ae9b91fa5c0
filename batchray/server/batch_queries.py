"""The queries of the routes of batches: pages, filters and streams."""

from __future__ import annotations

from typing import Literal

from batchray.schema import ItemStatus, StopReason
from batchray.schema.base import WireModel
from batchray.server.pagination import Page
from batchray.store import SortOrder


class MessagesQuery(Page):
    """Query of a batch's messages: a page, and optionally one agent."""

    agent_id: str | None = None


class ItemsQuery(Page):
    """Query of a batch's items: a page in batch order, and optional filters."""

    order: SortOrder = "asc"
    status: ItemStatus | Literal["pending"] | None = None
    stop_reason: StopReason | None = None
    agent_id: str | None = None
    custom_id: str | None = None


class ResultsQuery(WireModel):
    """Query of a batch's results.

    With `follow` the stream stays open for new results until the job ends.  With `include_input` each result has the
    input of its request.  `after` is the `batch_item_id` of a result: the stream continues after it.
    """

    order: Literal["finish", "index"] = "index"
    failed: bool = False
    follow: bool = False
    include_input: bool = False
    after: str | None = None
