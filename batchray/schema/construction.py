"""Models that users construct in Python: a bad argument is one of batchray's errors, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from batchray.errors import ConfigError, UsageError
from batchray.schema.validation_text import first_problem

if TYPE_CHECKING:
    ConstructedModel = BaseModel
else:

    class _Constructed(type(BaseModel)):
        """Translates the errors of a constructor.

        Pydantic calls no constructor when it validates JSON or a mapping; the readers of those add the place.
        """

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            cls.check_arguments(kwargs)
            try:
                return super().__call__(*args, **kwargs)
            except ValidationError as error:
                raise cls.usage_error(error) from None

    class ConstructedModel(BaseModel, metaclass=_Constructed):
        """A model whose constructor raises a UsageError for a bad argument."""

        @classmethod
        def check_arguments(cls, arguments: Mapping[str, Any]) -> None:
            """Raise UsageError for arguments that pydantic would ignore."""

        @classmethod
        def usage_error(cls, error: ValidationError) -> UsageError:
            """Return the error to raise."""
            return ConfigError(first_problem(error, cls), cls.__name__)
