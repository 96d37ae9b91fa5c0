"""The models of OpenAI's API, which are agents here.  Times are in seconds since 1970.

Source: OpenAI's API reference, "Models", and the types of its client.
"""

from __future__ import annotations

from typing import Literal

from batchray.schema.base import WireModel


class OpenAIModel(WireModel):
    """An agent as a model: `id` is what a line of a batch names as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class OpenAIModelList(WireModel):
    """All agents that a user may ask."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]
