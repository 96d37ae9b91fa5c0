"""Base types of the configuration models."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from batchray.schema.construction import ConstructedModel

_FAILURE_LIMIT = re.compile(r"[0-9]{1,12}|(100|[0-9]{1,2}(\.[0-9]{1,4})?)%")

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]


def _failure_limit(given: Any) -> str:
    text = str(given) if type(given) is int else given
    if not isinstance(text, str) or not _FAILURE_LIMIT.fullmatch(text):
        raise ValueError("give a number of failures, such as 20, or a percentage, such as 5%")
    return text


FailureLimit = Annotated[str, BeforeValidator(_failure_limit)]
"""A number of failures, or a percentage such as `5%` or `0.5%`."""


class Strict(ConstructedModel):
    """A frozen model that refuses unknown keys.  Its constructor raises ConfigError."""

    model_config = ConfigDict(extra="forbid", frozen=True)
