"""Options of the input of a batch: its format, and how a row of a table becomes a request."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any

from batchray.errors import BatchFormatError

FORMATS = ("jsonl", "json", "openai", "anthropic", "parquet", "arrow", "csv", "tsv", "datasets")
"""Names of formats: `json` is a whole JSON document, `datasets` a directory that Hugging Face `save_to_disk` wrote."""

TABLES = frozenset({"parquet", "arrow", "csv", "tsv", "datasets"})
"""The formats whose rows always are rows of a table."""


@dataclass(frozen=True, slots=True)
class InputOptions:
    """How the rows or lines of a batch become requests.  All of it is optional.

    `agent` is the agent of every request.  Of a row, either `input_column` is the input, or `prompt`, a template such
    as "Answer: {question}", or what the function `to_request` returns: the input, or a whole request.  `id_column` is
    the column of `custom_id`.  `format` is one of `FORMATS`; None finds it out.
    """

    format: str | None = None
    agent: str | None = None
    input_column: str | None = None
    prompt: str | None = None
    id_column: str | None = None
    to_request: Callable[[dict[str, Any]], Any] | None = None

    @property
    def maps_rows(self) -> bool:
        """Whether they say how a row becomes a request, so that the input is a table."""
        return bool(self.given - {"format", "agent"})

    @property
    def given(self) -> set[str]:
        """The names of the options that are given."""
        return {each.name for each in fields(self) if getattr(self, each.name) is not None}

    def check(self, agents: Collection[str]) -> None:
        """Raise BatchFormatError for options that cannot be used together, or an unknown agent or format."""
        if self.format is not None and self.format not in FORMATS:
            raise BatchFormatError(f"unknown format {self.format!r}; there are: {', '.join(FORMATS)}")
        if len(ways := sorted(self.given & {"input_column", "prompt", "to_request"})) > 1:
            raise BatchFormatError(f"give only one of {' and '.join(ways)}: each says what the input of a row is")
        if self.agent is not None and self.agent not in agents:
            raise BatchFormatError(f"there is no agent {self.agent!r}; known: {', '.join(sorted(agents)[:5])}")


NO_OPTIONS = InputOptions()
"""Nothing is said: each line or object is a whole request, in the format that it seems to have."""
