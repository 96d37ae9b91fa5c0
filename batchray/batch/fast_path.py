"""A fast validator for simple requests (texts, flat metadata), many at once; several times faster than the models.

Requests that pass are valid for the models too, with the same content.  Requests that do not pass may still be valid:
the models decide.

msgspec keeps the last of two members with the same key, which must be an error here.  Instead of parsing again, the
parsed requests are encoded, and the quotation marks are counted: a duplicate key or an unknown escape would leave fewer
of them than the input has.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence, Set
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["user", "system", "assistant"]
    content: str
    type: Literal["message"] | UnsetType = UNSET
    name: str | UnsetType | None = UNSET
    otid: str | UnsetType | None = UNSET


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    agent_id: str
    custom_id: str | _Int64 | UnsetType | None = UNSET
    input: str | UnsetType = UNSET
    messages: list[_Message] | UnsetType = UNSET
    max_steps: _Int64 | UnsetType | None = UNSET
    metadata: dict[str, str | _Int64 | float | bool | None] | UnsetType | None = UNSET


_DECODER = msgspec.json.Decoder(list[_Request])
_ENCODER = msgspec.json.Encoder()


def parse_simple_requests(
    bodies: Sequence[bytes | memoryview | msgspec.Raw], known: Set[str]
) -> list[tuple[str, str | None]] | None:
    """Return the agent id and the custom id of each request; None unless all of them are simple and valid.

    `known` are the ids of the agents.
    """
    text = b"[%b]" % b",".join(bodies)
    try:
        requests = _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # See the module's docstring.  A \u escape could be a quotation mark, or half of a character, so it does not pass.
    if text.count(b'"') != _ENCODER.encode(requests).count(b'"') or (b"\\" in text and b"\\u" in text):
        return None
    if len(requests) != len(bodies) or not all((each.input is UNSET) != (each.messages is UNSET) for each in requests):
        return None
    if not known >= {each.agent_id for each in requests}:
        return None
    return [
        # One string object for all requests of an agent, which pickle then writes once.
        (sys.intern(each.agent_id), id_text(each.custom_id))
        for each in requests
    ]


def id_text(custom_id: str | int | UnsetType | None) -> str | None:
    """Return a custom id as the store keeps it for searching."""
    if isinstance(custom_id, str):
        return custom_id
    return str(custom_id) if isinstance(custom_id, int) else None
