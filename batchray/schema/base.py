"""Base classes of the wire models: frozen, times in UTC.

Unknown fields are ignored, because the models also read what other versions have stored.  `schema.keys` finds those of
a caller's input.
"""

from __future__ import annotations

from collections.abc import Set
from datetime import UTC, datetime
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer
from pydantic.config import JsonDict


class WireModel(BaseModel):
    """A frozen wire object.  `model_dump_json()` writes all keys, nulls included, as Letta's server does.

    `without_effect` are fields that exist for Letta's clients and change nothing here.
    """

    model_config = ConfigDict(frozen=True)

    without_effect: ClassVar[Set[str]] = frozenset()


class OpenModel(WireModel):
    """A wire model that keeps unknown fields: real servers and newer versions send more."""

    model_config = ConfigDict(extra="allow")


def given(name: str) -> JsonDict:
    """Return a JSON Schema that requires a field that is not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def one_given(*names: str) -> JsonDict:
    """Return a JSON Schema that requires at least one of the fields; null counts."""
    return {"anyOf": [{"required": [name]} for name in names]}


def _as_utc(value: datetime) -> datetime:
    # Letta's server writes some of its UTC times without a zone.
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _to_second(value: datetime) -> datetime:
    return _as_utc(value).replace(microsecond=0)


def _isoformat(value: datetime) -> str:
    return value.isoformat(timespec="seconds")


UtcDatetime = Annotated[datetime, AfterValidator(_as_utc)]
"""An aware UTC time, written with `Z`.  A time without a zone is taken as UTC."""

UtcSecond = Annotated[datetime, AfterValidator(_to_second), PlainSerializer(_isoformat, when_used="json")]
"""A UTC time cut to whole seconds, written with `+00:00`: the `date` of a LettaMessage."""
