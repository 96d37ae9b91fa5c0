"""Base types of the configuration models."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys.

    `parts` are models whose keys are often written here by mistake; errors suggest their keys too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: ClassVar[tuple[type[BaseModel], ...]] = ()
