"""Keyword arguments that a function does not take, refused with the one that was probably meant."""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Iterable
from typing import Any

from batchray.errors import ConfigError


def check_keywords(function: Callable[..., Any], given: Iterable[str]) -> None:
    """Raise ConfigError for a keyword that a function does not take.

    The function has keywords of its own, and perhaps `**options: Unpack[...]` of a TypedDict.
    """
    known = _keywords(function)
    if unknown := [name for name in given if name not in known]:
        close = difflib.get_close_matches(unknown[0].lower(), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"unknown key {unknown[0]!r}{hint}", function.__name__)


@functools.cache
def _keywords(function: Callable[..., Any]) -> Collection[str]:
    parameters = inspect.signature(function).parameters.values()
    names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    for each in parameters:
        if each.kind is each.VAR_KEYWORD:
            [options] = typing.get_args(typing.get_type_hints(function)[each.name])
            names += options.__annotations__
    return names
