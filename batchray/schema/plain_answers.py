"""The outcome of most requests, one assistant message of text, read without the models in a tenth of their time.

All other outcomes are left to the models, which show the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from batchray.schema.ids import otid
from batchray.schema.letta_messages import AssistantMessage
from batchray.schema.visible import layout

_Nothing = Annotated[list[None], msgspec.Meta(max_length=0)]


class _Text(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    role: Literal["assistant"]
    content: list[_Text]
    created_at: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
    agent_id: str | None = None
    model: str | None = None
    step_id: str | None = None
    run_id: str | None = None
    batch_item_id: str | None = None
    tool_returns: _Nothing | None = None
    approvals: _Nothing | None = None


_DECODER = msgspec.json.Decoder(Annotated[list[_Answer], msgspec.Meta(min_length=1, max_length=1)])


class PlainAnswer(NamedTuple):
    """An assistant message: its text, the model that wrote it, and what `visible_json` shows of it."""

    text: str
    model: str | None
    shown: list[dict[str, Any]]


def plain_answer(messages: bytes) -> PlainAnswer | None:
    """Return the only message of an outcome; None unless it is an assistant message of text and nothing else."""
    try:
        [answer] = _DECODER.decode(messages)
    except msgspec.DecodeError:
        return None
    text = "".join(part.text for part in answer.content)
    shown = {
        **layout(AssistantMessage),
        "id": answer.id,
        "date": f"{answer.created_at[:19]}+00:00",
        "otid": otid(answer.id, 0),
        "step_id": answer.step_id,
        "run_id": answer.run_id,
        "content": text,
    }
    return PlainAnswer(text, answer.model, [shown] if text else [])
