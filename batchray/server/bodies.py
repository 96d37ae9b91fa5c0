"""The kinds of response bodies that are not one JSON value.  A route declares one of them as its `response`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlainText:
    """Text."""

    media_types = ("text/plain",)


@dataclass(frozen=True)
class LinesOf:
    """JSON Lines: each line is a value of the type `line`.

    They are offered as plain text too, because many clients know no JSON Lines; `stream.JsonLines` sends both.
    """

    line: Any
    media_types = ("application/jsonl", "text/plain")


@dataclass(frozen=True)
class EventsOf:
    """Server-sent events.  `events` holds the type of the JSON in `data` by the name of the event.

    An event without a name is of the type `message`.  If `ends_with_done`, a last event has the data `[DONE]`, which is
    no JSON.
    """

    events: Mapping[str, Any]
    ends_with_done: bool = False
    media_types = ("text/event-stream",)


@dataclass(frozen=True)
class FileContent:
    """The content of a file, whatever it is."""

    media_types = ("application/octet-stream",)


Body = FileContent | PlainText | LinesOf | EventsOf
