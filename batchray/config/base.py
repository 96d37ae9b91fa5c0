"""Base types of the configuration models."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from batchray.schema.construction import ConstructedModel

_FAILURE_LIMIT = r"^([0-9]{1,12}|(100|[0-9]{1,2}(\.[0-9]{1,4})?)%)$"

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]


FailureLimit = Annotated[
    str, BeforeValidator(lambda given: str(given) if type(given) is int else given), Field(pattern=_FAILURE_LIMIT)
]
"""A number of failures, or a percentage such as `5%` or `0.5%`."""


class Strict(ConstructedModel):
    """A frozen model that refuses unknown keys.  Its constructor raises ConfigError."""

    model_config = ConfigDict(extra="forbid", frozen=True)
