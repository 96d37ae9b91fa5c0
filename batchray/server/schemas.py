"""The JSON Schemas of the OpenAPI document: those of pydantic, in the form that generators of clients need."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from batchray.schema.base import MAY_BE_ABSENT

Key = TypeVar("Key", bound=Hashable)
Schema = dict[str, Any]

_PREFIX = "#/components/schemas/"
REF = _PREFIX + "{model}"
"""Where a model's schema is in the document."""


class Untitled(GenerateJsonSchema):
    """Leaves out the titles of fields, which repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False."""
        return False


def of_types(types: Mapping[tuple[Key, JsonSchemaMode], Any]) -> tuple[dict[Key, Schema], dict[str, Schema]]:
    """Return the schema of each type by its key, and the schemas of all models by their names.

    A type is anything that pydantic reads or writes.
    """
    inputs = [(key, mode, TypeAdapter(kind)) for (key, mode), kind in types.items()]
    found, definitions = TypeAdapter.json_schemas(inputs, ref_template=REF, schema_generator=Untitled)
    return {key: schema for (key, _), schema in found.items()}, definitions.get("$defs", {})


def names_in(schema: Any, models: Mapping[str, Schema]) -> set[str]:
    """Return the names of the models that a schema refers to, also through others."""
    names, new = set[str](), set(_direct_names(schema))
    while new:
        names |= new
        new = {name for model in new for name in _direct_names(models[model])} - names
    return names


def forbid_unknown(schema: Any, models: Mapping[str, Schema]) -> None:
    """Allow no other than the described members in an object, and in all objects that it refers to."""
    for each in (schema, *map(models.__getitem__, names_in(schema, models))):
        for level in _levels(each):
            if level.get("type") == "object" and "properties" in level:
                level["additionalProperties"] = False


def describe_defaults(models: Mapping[str, Schema], are_read: set[str]) -> None:
    """Remove the defaults of members; in the models that clients send, say them in words."""
    for name, model in models.items():
        for member in model.get("properties", {}).values():
            describe_default(member, is_read=name in are_read)


def describe_default(member: Schema, *, is_read: bool = True) -> None:
    """Remove the default of a member or parameter; if the server reads it, say the default in words.

    Generated clients send a `default`, or require the member.  Here an absent member is often not the same as one that
    is set to its default: the agent's own setting holds.
    """
    default = member.pop("default", None)
    if is_read and default is not None and "const" not in member:
        said = member.get("description", "")
        member["description"] = f"{said}  Default: `{json.dumps(default)}`.".strip()


def require_members(models: Mapping[str, Schema], are_read: set[str]) -> None:
    """Require all members of the models that clients only receive: they are always written, perhaps as null."""
    for name, model in models.items():
        members = model.get("properties", {})
        absent = {member for member, schema in members.items() if schema.pop(MAY_BE_ABSENT, False)}
        if members and name not in are_read:
            model["required"] = [member for member in members if member not in absent]


def without_null(schema: Schema) -> Schema:
    """Return a schema without null, which a query string cannot express."""
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return {**rest, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})}


def _direct_names(schema: Any) -> Iterator[str]:
    for level in _levels(schema):
        if isinstance(reference := level.get("$ref"), str):
            yield reference.removeprefix(_PREFIX)


def _levels(schema: Any) -> Iterator[Schema]:
    """Yield every object inside a schema, and itself."""
    if isinstance(schema, list):
        for each in schema:
            yield from _levels(each)
    elif isinstance(schema, dict):
        yield schema
        for each in schema.values():
            yield from _levels(each)
