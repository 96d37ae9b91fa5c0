"""`${VAR}` in agents files: which values are expanded when, and by what.

A file's values are expanded when it is read, and then stored with a job, except for two kinds:

- The address, headers, query and proxy of a provider keep their text until an agent is bound, so that what is stored
  names the variable instead of its value.
- Texts for the model (prompt, memory, script) are never expanded: `$` has a meaning of its own in many of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from batchray.config.documents import Document
from batchray.errors import ConfigError
from batchray.schema.secret_names import is_secret_name

KEPT_IN_PROVIDERS = frozenset({"base_url", "headers", "query", "proxy"})
"""Fields of a provider that are expanded when an agent is bound to it."""

_KEPT_IN_AGENTS = frozenset({"system", "memory_blocks", "script"})
_REFERENCE = re.compile(r"\$(?:\$|\{([^{}]*)(\}?))")
_NAME = re.compile(r"([A-Za-z_]\w*)(?::-(.*))?", re.DOTALL | re.ASCII)


def has_variable(text: str) -> bool:
    """Whether a value names a variable, so that it is known only once it is expanded."""
    return "${" in text.replace("$$", "")


def expand(text: str, environment: Mapping[str, str], secrets: set[str] | None = None) -> str:
    """Return `text` with `${VAR}` and `${VAR:-default}` replaced by values of the environment, and `$$` by `$`.

    The values of variables with the name of a secret are added to `secrets`; without it such a variable is refused.
    Raises ValueError for a variable that is not set or empty and has no default, and for a malformed reference.
    """

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name = _NAME.fullmatch(found[1])
        if name is None or not found[2]:
            raise ValueError(f"{found[0]!r:.80} is not of the form ${{VAR}} or ${{VAR:-default}}; a $ is written as $$")
        if is_secret_name(name[1]) and secrets is None:
            raise ValueError(
                f"${{{name[1]}}} seems to be secret, and this is stored with the job; use it in a provider"
            )
        known = environment.get(name[1]) or name[2]
        if known is None:
            raise ValueError(
                f"the environment variable {name[1]} is not set or empty; set it, or write ${{{name[1]}:-default}}"
            )
        if is_secret_name(name[1]) and secrets is not None:
            secrets.add(known)
        return known

    return _REFERENCE.sub(value, text) if "$" in text else text


def expand_file(document: Document, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of an agents file, expanded.  Raises ConfigError with the line of a value that cannot be."""

    def walk(value: Any, path: Sequence[int | str]) -> Any:
        if _is_kept(path):
            return value
        if isinstance(value, dict):
            return {key: walk(each, (*path, key)) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each, (*path, i)) for i, each in enumerate(value)]
        if not isinstance(value, str):
            return value
        try:
            return expand(value, environment, None if path[0] == "agents" else set())
        except ValueError as error:
            raise ConfigError(str(error), document.location(path)) from None

    return {key: walk(value, (key,)) for key, value in document.data.items()}


def _is_kept(path: Sequence[int | str]) -> bool:
    kept = {"providers": KEPT_IN_PROVIDERS, "agents": _KEPT_IN_AGENTS}.get(str(path[0]), frozenset())
    return len(path) == 3 and path[2] in kept
