"""Pydantic's validation errors as text for people and models."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from batchray.schema.keys import did_you_mean, model_at

Path = Sequence[int | str]


def path_text(path: Path) -> str:
    """Return a path in an input as it is written in Python: `agents[0].tools[1]`, on one line and bounded."""
    return "".join(map(_part_text, path)).removeprefix(".")


def _part_text(part: int | str) -> str:
    if isinstance(part, str) and part.isidentifier() and len(part) <= 60:
        return f".{part}"
    return f"[{part}]" if isinstance(part, int) else f"[{part[:60]!r}]"


def first_problem(error: ValidationError, model: type[BaseModel], root: str = "") -> str:
    """Return the problem at `problem_path` as one sentence, without the input.  `root` names the input in the path.

    An unknown key comes with the key that it resembles, of the model at its place.
    """
    first = _first(error)
    if first["type"] != "extra_forbidden":
        return _sentence(first["loc"], first, root)
    path, key = first["loc"][:-1], str(first["loc"][-1])
    where = f"{path_text((root, *path, key))}: " if root else ""
    return f"{where}unknown key {key!r}{did_you_mean(key, model_at(model, path))}"


def problem_path(error: ValidationError) -> Path:
    """Return the place of the first unknown key, which often leaves another one missing; or of the first problem."""
    return _first(error)["loc"]


def _first(error: ValidationError) -> ErrorDetails:
    problems = _problems(error)
    return next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])


def request_problem(error: ValidationError) -> tuple[str, str]:
    """Return the path and the text of a request's first problem, without the input and names of union branches."""
    problems = _problems(error)
    same_field = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
    # Each branch of a union reports a problem; the one that got furthest is the branch that was meant.
    deepest = max(same_field, key=lambda problem: len(problem["loc"]))
    path = deepest["loc"]
    # The path also holds the names of branches; only fields and positions are what the caller wrote.
    written = [part for before, part in zip(("", *path), path, strict=False) if not _is_branch(before, part)]
    return path_text(written), _text(deepest)


def all_problems(error: ValidationError, limit: int = 5) -> str:
    """Return the first `limit` problems, separated by semicolons, without the input."""
    return "; ".join(_sentence(problem["loc"], problem) for problem in _problems(error)[:limit])


def _problems(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False, include_context=False)


def _sentence(path: Path, problem: ErrorDetails, root: str = "") -> str:
    where, message = path_text((root, *path) if root else path), _text(problem)
    return f"{where}: {message}" if where else message


def _text(problem: ErrorDetails) -> str:
    return problem["msg"].removeprefix("Value error, ")


def _is_branch(before: int | str, part: int | str) -> bool:
    if isinstance(part, int):
        return False
    is_tag = isinstance(before, int) and part in ("message", "approval", "tool", "tool_return", "text", "image")
    return is_tag or part in ("str", "bool") or not part.isidentifier()
