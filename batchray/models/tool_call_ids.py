"""Ids for tool calls that a provider sends without a usable one."""

from __future__ import annotations

import random
import string

_CHARS = string.ascii_letters + string.digits
_LENGTH = 9
_RANDOM = random.SystemRandom()  # workers that were forked must not repeat each other's ids


def tool_call_id(number: int) -> str:
    """Return the id of a number: nine letters and digits, because Mistral accepts no other form, and the others any."""
    return "".join(_CHARS[number // len(_CHARS) ** place % len(_CHARS)] for place in range(_LENGTH))


def new_tool_call_id() -> str:
    """Return a random id."""
    return tool_call_id(_RANDOM.randrange(len(_CHARS) ** _LENGTH))
