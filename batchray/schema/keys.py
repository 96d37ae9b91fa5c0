"""Keys of JSON input that its model does not have, or that have no effect, found before the input is validated.

Pydantic could refuse unknown keys itself, but the same models read what older versions have stored, and a field of
another name hides behind the error for the field that is then missing.
"""

from __future__ import annotations

import difflib
import functools
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union

from pydantic import AliasChoices, BaseModel, Discriminator, Tag
from pydantic.fields import FieldInfo

Path = tuple[int | str, ...]


class UnusedKey(NamedTuple):
    """A key of the input that is not used: its path, and the model at its level, which may know it.

    `refusal` is the reason why a known key is refused; None if it may be accepted without an effect.
    """

    path: Path
    model: type[BaseModel]
    is_known: bool
    refusal: str | None = None


_Walk = Callable[[Any, Path], Iterator[UnusedKey]]


def unused_keys(model: type[BaseModel], value: Mapping[str, Any], path: Path = ()) -> Iterator[UnusedKey]:
    """Yield the keys in `value`, at every level, that are unknown to its model, have no effect there, or are refused.

    A model names them in `without_effect` and `refused`.  Null, false, an empty list or object, and the default ask for
    nothing.  The input need not be valid.
    """
    walks = _walks(model)
    without_effect: Collection[str] = getattr(model, "without_effect", ())
    refused: Mapping[str, str] = getattr(model, "refused", {})
    for key, child in value.items():
        if key not in walks:
            yield UnusedKey((*path, key), model, is_known=False)
        elif key in without_effect or key in refused:
            if child not in (None, False, [], {}, model.model_fields[key].default):
                yield UnusedKey((*path, key), model, is_known=True, refusal=refused.get(key))
        elif isinstance(child, dict | list) and (walk := walks[key]) is not None:
            yield from walk(child, (*path, key))


def did_you_mean(key: str, model: type[BaseModel], given: Collection[str] = ()) -> str:
    """Return "; did you mean 'name'?" with the key of the model that resembles `key` and is not `given`; or nothing."""
    names: Mapping[str, str] = getattr(model, "other_names", {})
    usual = names.get(key)
    known = [name for name in _walks(model) if name not in given and name != key]
    close = [usual] if usual in known else difflib.get_close_matches(key.lower(), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """Return the innermost model on a path from `model` through fields, lists and mappings."""
    found, here = model, Any
    for part in path:
        here = _plain(_kind(found.model_fields.get(str(part))) if here in (Any, found) else _element(here))
        found = here if _is_model(here) else found
    return found


@functools.cache
def _walks(model: type[BaseModel]) -> dict[str, _Walk | None]:
    """Return how to look into the value of each key; None for one without a model inside."""
    walks: dict[str, _Walk | None] = {}
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        keys = [name] if alias is None else alias.choices if isinstance(alias, AliasChoices) else [alias]
        walks.update((str(key), _walk_of(_kind(field))) for key in keys)
    return walks


def _kind(field: FieldInfo | None) -> Any:
    """Return the type of a field as it was annotated."""
    if field is None:
        return None
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _walk_of(kind: Any) -> _Walk | None:
    """Return how to look into a value of a type; None if no model is inside."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if _is_model(kind):
        return lambda value, path: unused_keys(kind, value, path) if isinstance(value, dict) else iter(())
    if origin is Annotated:
        choice = next((each for each in arguments[1:] if isinstance(each, Discriminator)), None)
        return _walk_of(arguments[0]) if choice is None else _tagged_walk(arguments[0], choice)
    if origin in (Union, types.UnionType):
        return next(filter(None, map(_walk_of, arguments)), None)  # the others are texts, numbers and null
    if origin is list and (walk := _walk_of(arguments[0])) is not None:
        return functools.partial(_walk_list, walk)
    return None


def _walk_list(walk: _Walk, value: Any, path: Path) -> Iterator[UnusedKey]:
    for index, element in enumerate(value if isinstance(value, list) else ()):
        yield from walk(element, (*path, index))


def _tagged_walk(union: Any, choice: Discriminator) -> _Walk:
    branches: dict[str, _Walk] = {}
    for branch in typing.get_args(union):
        tag = next(each.tag for each in typing.get_args(branch) if isinstance(each, Tag))
        walk = _walk_of(branch)
        assert walk is not None
        branches[tag] = walk
    tag_of = choice.discriminator
    assert callable(tag_of)

    def walk_branch(value: Any, path: Path) -> Iterator[UnusedKey]:
        tag = tag_of(value) if isinstance(value, dict) else None
        return branches[tag](value, path) if isinstance(tag, str) and tag in branches else iter(())

    return walk_branch


def _element(kind: Any) -> Any:
    """Return the type of the elements of a list or tuple, or of the values of a mapping."""
    arguments = typing.get_args(kind)
    return next((each for each in reversed(arguments) if each is not ...), Any)


def _plain(kind: Any) -> Any:
    """Return a type without its annotations and without None."""
    if typing.get_origin(kind) is Annotated:
        return _plain(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (Union, types.UnionType):
        return _plain(next(each for each in typing.get_args(kind) if each is not type(None)))
    return kind


def _is_model(kind: Any) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
