"""What all parts of the configuration share: strict models, and errors as one sentence."""

from __future__ import annotations

import difflib
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """A frozen model that refuses keys it does not know.  `parts` are models whose keys people mix up with its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: ClassVar[tuple[type[BaseModel], ...]] = ()


def first_sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first of pydantic's complaints as one sentence."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        close = difflib.get_close_matches(key, _all_keys(model), n=1)
        return f"unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _all_keys(model: type[BaseModel]) -> list[str]:
    return [key for each in (model, *getattr(model, "parts", ())) for key in each.model_fields]
