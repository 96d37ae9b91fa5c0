"""Base classes of the wire models: frozen, times in UTC.

Unknown fields are ignored, because the models also read what other versions have stored.  `schema.keys` finds those of
a caller's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, GetJsonSchemaHandler, PlainSerializer
from pydantic.config import JsonDict

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


# Schemas of the values that ask for nothing, by type.
_NOTHING: Mapping[str, JsonDict] = {
    "null": {},
    "boolean": {"enum": [False]},
    "integer": {"enum": [0]},
    "array": {"maxItems": 0},
    "object": {"maxProperties": 0},
}


class WireModel(BaseModel):
    """A frozen wire object.  `model_dump_json()` writes all keys, nulls included, as Letta's server does.

    `without_effect` are fields that exist for Letta's clients and change nothing here.  `refused` are fields of Letta's
    API that cannot be had here, with the reason.  The schema says so; `schema.keys` finds both in an input.
    """

    model_config = ConfigDict(frozen=True)

    without_effect: ClassVar[Set[str]] = frozenset()
    refused: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the fields that have no effect or are refused."""
        schema = handler(core_schema)
        members = handler.resolve_ref_schema(schema).get("properties", {})
        for name in cls.without_effect & members.keys():
            members[name]["description"] = "Accepted for Letta's clients; it has no effect here."
        for name in cls.refused.keys() & members.keys():
            members[name] = {"description": f"Refused: {cls.refused[name]}.", **_nothing_of(members[name])}
        return schema


def _nothing_of(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of a field's values that ask for nothing."""
    kinds: list[JsonSchemaValue] = schema.get("anyOf", [schema])
    kept = [{**kind, **_NOTHING[kind["type"]]} for kind in kinds if kind.get("type") in _NOTHING]
    return kept[0] if len(kept) == 1 else {"anyOf": kept}


class OpenModel(WireModel):
    """A wire model that keeps unknown fields: real servers and newer versions send more."""

    model_config = ConfigDict(extra="allow")


MAY_BE_ABSENT = "x-may-be-absent"
"""In `json_schema_extra` of a field: it is not written if it is null.  All other fields are always written."""


# Each rule is inside an `allOf`.  Beside `properties`, generators of clients take `anyOf` and `oneOf` for types without
# the fields.


def any_given(*names: str) -> JsonDict:
    """Return a JSON Schema that requires at least one of the fields, not null."""
    return {"allOf": [{"anyOf": [_given(name) for name in names]}]}


def one_given(*names: str) -> JsonDict:
    """Return a JSON Schema that requires exactly one of the fields, not null."""
    return {"allOf": [{"oneOf": [_given(name) for name in names]}]}


def any_present(*names: str) -> JsonDict:
    """Return a JSON Schema that requires at least one of the fields; null counts."""
    return {"allOf": [{"anyOf": [{"required": [name]} for name in names]}]}


def _given(name: str) -> JsonDict:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def _whole(value: object) -> object:
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= 2**53
    return int(value) if is_whole else value  # type: ignore[call-overload]


WHOLE = BeforeValidator(_whole)
"""Takes 3.0 for the integer 3, as JSON Schema does: JSON has one type of numbers."""

Integer = Annotated[int, WHOLE]
"""An integer in a caller's input."""


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
