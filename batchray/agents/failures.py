"""Exceptions of users' code in words: type, message and traceback, bounded and without keys."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from traceback import TracebackException
from typing import NamedTuple, TypeVar

import batchray
from batchray.agents.loop_advice import advice_for
from batchray.agents.user_code import UserCodeError
from batchray.config import BoundAgent
from batchray.errors import ConfigError, RequestError
from batchray.support.captured_output import BoundedText

T = TypeVar("T")

MAX_MESSAGE_CHARS = 4000
"""Longer messages are cut."""
MAX_TRACEBACK_CHARS = 8000
"""The first and the last half of this are kept of a longer traceback."""

_MAX_PARTS = 5
_OWN_CODE = f"{Path(batchray.__file__).parent}{os.sep}"
_IMPORT_SYSTEM = "<frozen importlib"
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
# Shorter values occur in any text.
_MIN_SECRET_CHARS = 8


def _is_no_word(value: str) -> bool:
    """Whether a value can be a key, and not a word that occurs in any text, as in `SORT_KEY=created_at`."""
    return len(value) >= 20 or any(map(str.isdigit, value))


class Failure(NamedTuple):
    """Why a request failed: its `ErrorInfo`, its stop reason, and the provider whose requests all meet that failure."""

    type: str
    message: str
    traceback: str | None = None
    stop_reason: str = "error"
    shared_by: str = ""


class Masks:
    """Removes keys from text: those of an agent's provider, and of this process's environment."""

    def __init__(self, bound: BoundAgent | None = None) -> None:
        self._bound = bound

    def clean(self, text: str) -> str:
        """Return the text with `***` in the place of each key."""
        for secret in self._secrets if text else ():
            text = text.replace(secret, "***")
        return text

    @cached_property
    def _secrets(self) -> list[str]:
        values = {value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name)}
        found = set(filter(_is_no_word, values))
        if self._bound is not None and self._bound.key is not None:
            found.add(self._bound.key.get_secret_value())
        if self._bound is not None and self._bound.access is not None:
            found.update(self._bound.access.secrets)
        return sorted((each for each in found if len(each) >= _MIN_SECRET_CHARS), key=len, reverse=True)


def failure_of(error: BaseException, masks: Masks) -> Failure:
    """Return why a request failed with this error.  Only errors of users' code have a traceback."""
    if isinstance(error, UserCodeError):
        return _user_failure(error.raised, masks)
    if isinstance(error, RequestError):
        return Failure(error.type, error.message[:MAX_MESSAGE_CHARS], None, error.stop_reason, error.shared_by)
    if isinstance(error, ConfigError):
        cause = error.__cause__
        traceback = traceback_of(cause.raised, masks) if isinstance(cause, UserCodeError) else None
        return Failure("config_error", masks.clean(str(error))[:MAX_MESSAGE_CHARS], traceback)
    return Failure(type_name(error), message_of(error)[:MAX_MESSAGE_CHARS])


def _user_failure(raised: BaseException, masks: Masks) -> Failure:
    traceback = traceback_of(raised, masks)
    if isinstance(raised, RequestError):
        return Failure(raised.type, masks.clean(raised.message)[:MAX_MESSAGE_CHARS], traceback, raised.stop_reason)
    kind = "config_error" if isinstance(raised, ConfigError) else type_name(raised)
    return Failure(kind, masks.clean(message_of(raised))[:MAX_MESSAGE_CHARS], traceback)


def type_name(error: BaseException) -> str:
    """Return the name of the error's class."""
    return _safely(lambda: str(type(error).__name__), "BaseException")


def message_of(error: BaseException) -> str:
    """Return what an error says, which its own code decides; with the first parts of a group."""
    text = _safely(lambda: str(error) or repr(error), "(its message cannot be read)")
    if isinstance(error, BaseExceptionGroup):
        parts = "; ".join(in_words(part) for part in error.exceptions[:_MAX_PARTS])
        text = f"{text}: {parts}"
    if (advice := _safely(lambda: advice_for(error), None)) is not None:
        text = f"{text} ({advice})"
    return text.encode("utf-8", "replace").decode()


def in_words(error: BaseException) -> str:
    """Return the name of an error's class and what it says, if it says anything."""
    raised = error.raised if isinstance(error, UserCodeError) else error
    is_silent = _safely(lambda: not str(raised), otherwise=False)
    return type_name(raised) if is_silent else f"{type_name(raised)}: {message_of(raised)}"


def traceback_of(error: BaseException, masks: Masks) -> str:
    """Return an error's traceback without the frames of this package, cut in its middle if it is long."""
    bounded = BoundedText(MAX_TRACEBACK_CHARS)
    for line in _safely(lambda: list(_traceback_lines(error)), [f"{in_words(error)}\n"]):
        bounded.write(line)
    return masks.clean(bounded.text)


def _traceback_lines(error: BaseException) -> Iterator[str]:
    described = TracebackException(type(error), error, error.__traceback__, compact=True)
    for part in _parts(described):
        part.stack[:] = [frame for frame in part.stack if not frame.filename.startswith((_OWN_CODE, _IMPORT_SYSTEM))]
    return described.format()


def _parts(described: TracebackException) -> Iterator[TracebackException]:
    """Yield a described exception, its causes and its parts."""
    waiting = [described]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += filter(None, (part.__cause__, part.__context__, *(part.exceptions or ())))


def _safely(read: Callable[[], T], otherwise: T) -> T:
    """Read from an exception, whose class may run any code."""
    try:
        return read()
    except BaseException:  # noqa: BLE001
        return otherwise
