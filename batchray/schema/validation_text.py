"""Pydantic's validation errors as text for people and models."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Path = Sequence[int | str]


def path_text(path: Path) -> str:
    """Return a path in an input as it is written in Python: `agents[0].tools[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def first_problem(error: ValidationError, model: type[BaseModel], root: str = "") -> str:
    """Return the first problem as one sentence, without the input.  `root` names the input as a whole in the path.

    An unknown key comes with the key of the model, or of one of its `parts`, that it resembles.
    """
    first = _problems(error)[0]
    if first["type"] != "extra_forbidden":
        return _sentence(first["loc"], first, root)
    *path, key = (root, *first["loc"]) if root else first["loc"]
    close = difflib.get_close_matches(str(key), _all_keys(model), n=1)
    where = f"{path_text(path)}: " if root else ""
    return f"{where}unknown key {str(key)!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def request_problem(error: ValidationError) -> str:
    """Return the first problem of a request as one sentence, without the input and without names of union branches."""
    problems = _problems(error)
    same_field = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
    # Each branch of a union reports a problem; the one that got furthest is the branch that was meant.
    deepest = max(same_field, key=lambda problem: len(problem["loc"]))
    path = deepest["loc"]
    # The path also holds the names of branches; only fields and positions are what the caller wrote.
    written = [part for before, part in zip(("", *path), path, strict=False) if not _is_branch(before, part)]
    return _sentence(written, deepest)


def all_problems(error: ValidationError, limit: int = 5) -> str:
    """Return the first `limit` problems, separated by semicolons, without the input."""
    return "; ".join(_sentence(problem["loc"], problem) for problem in _problems(error)[:limit])


def _problems(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False, include_context=False)


def _sentence(path: Path, problem: ErrorDetails, root: str = "") -> str:
    where, message = path_text((root, *path) if root else path), problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _is_branch(before: int | str, part: int | str) -> bool:
    if isinstance(part, int):
        return False
    is_tag = isinstance(before, int) and part in ("message", "approval", "tool", "tool_return", "text", "image")
    return is_tag or part in ("str", "bool") or not part.isidentifier()


def _all_keys(model: type[BaseModel]) -> list[str]:
    return [key for each in (model, *getattr(model, "parts", ())) for key in each.model_fields]
