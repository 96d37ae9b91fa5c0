"""Ids: random ones for jobs, and ids derived from a job and an index, so that nothing is stored per item.

A derived id keeps the first 24 characters of its job's uuid4; the last 12 hexadecimal digits hold the position:

    job-1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00           the job
    batch_item-1b4e28ba-2fa1-4d3b-a3f5-000000700000    its item 7; run- has the same digits
    message-1b4e28ba-2fa1-4d3b-a3f5-000000700300       message 3 of that item; step- has the digits of its first one

Every id is a lower-case uuid4 behind a prefix, as Letta's server checks.  The low 8 bits of a derived message id stay
zero, because the ids of a message's parts (`otid`) use the low 7.
"""

from __future__ import annotations

import functools
import re
import uuid

MAX_ITEMS = 2**28
MAX_MESSAGES_PER_ITEM = 2**12
MAX_INPUT_MESSAGES = MAX_MESSAGES_PER_ITEM - 2**10
"""Limit of a request's own messages; the rest of an item's messages are its agent's."""
MAX_OTIDS_PER_MESSAGE = 2**7

_UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
JOB_ID_PATTERN, RUN_ID_PATTERN, STEP_ID_PATTERN = (rf"{prefix}-{_UUID4}" for prefix in ("job", "run", "step"))
"""The ids of jobs, runs and steps as regular expressions, without anchors."""

_JOB_ID = re.compile(JOB_ID_PATTERN)
_DERIVED_ID = re.compile(rf"(?:batch_item|run|message|step)-{_UUID4}")
_OF_A_MESSAGE = re.compile(rf"(?:message|step)-{_UUID4}")
_MESSAGE_ID = re.compile(rf"message-{_UUID4}")


def new_id(prefix: str) -> str:
    """Return `<prefix>-<uuid4>`, random."""
    return f"{prefix}-{uuid.uuid4()}"


def new_job_id() -> str:
    """Return a new random job id."""
    return new_id("job")


def is_job_id(value: str) -> bool:
    """Return whether `value` is `job-<uuid4>` in lower case, the only form a job id has."""
    return _JOB_ID.fullmatch(value) is not None


def is_message_id(value: str) -> bool:
    """Return whether `value` is `message-<uuid4>` in lower case."""
    return _MESSAGE_ID.fullmatch(value) is not None


def is_id(value: str, prefix: str) -> bool:
    """Return whether `value` is `<prefix>-<uuid4>` in lower case."""
    return re.fullmatch(rf"{prefix}-{_UUID4}", value) is not None


def job_stem(derived_id: str) -> str:
    """Return the beginning of the job's id in a derived id: all except its last 12 characters."""
    return f"job-{derived_id[-36:-12]}"


def item_id(job_id: str, index: int) -> str:
    """Return the `batch_item-` id of item `index`; ValueError unless 0 <= index < 2**28 and `job_id` is a job id."""
    return f"batch_item-{_stem(job_id, index)}00000"


def run_id(job_id: str, index: int) -> str:
    """Return the `run-` id of item `index`: the item's own uuid; ValueError as for `item_id`."""
    return f"run-{_stem(job_id, index)}00000"


def message_id(job_id: str, index: int, ordinal: int) -> str:
    """Return the id of message `ordinal` of item `index`; ValueError as for `item_id`, or unless ordinal < 4096."""
    return f"message-{_stem(job_id, index)}{_digits(ordinal)}"


def step_id(job_id: str, index: int, ordinal: int) -> str:
    """Return the id of the step whose first message is `ordinal` of item `index`; ValueError as for `message_id`."""
    return f"step-{_stem(job_id, index)}{_digits(ordinal)}"


def index_of(derived_id: str) -> int:
    """Return the item index in a derived item, run, message or step id; ValueError for any other string."""
    return int(_checked(_DERIVED_ID, derived_id)[-12:-5], 16)


def ordinal_of(derived_id: str) -> int:
    """Return the ordinal in a derived message or step id; ValueError for any other string."""
    return int(_checked(_OF_A_MESSAGE, derived_id)[-5:-2], 16)


def is_of_job(derived_id: str, job_id: str) -> bool:
    """Return whether `derived_id` can belong to this job: an item, run, message or step id with the job's uuid."""
    return _DERIVED_ID.fullmatch(derived_id) is not None and derived_id[-36:-12] == job_id[-36:-12]


def otid(message_id: str, k: int) -> str:
    """Return the id of part `k` of a message: its uuid with the low 7 bits set to `k`, as Letta forms it.

    Takes any message id, derived or not.  Raises ValueError unless 0 <= k < 128 and the id is `message-<uuid4>`.
    """
    if not 0 <= k < MAX_OTIDS_PER_MESSAGE:
        raise ValueError(f"need 0 <= k < {MAX_OTIDS_PER_MESSAGE}, got {k!r}")
    uuid4 = _checked(_MESSAGE_ID, message_id)[-36:]
    return f"{uuid4[:-2]}{int(uuid4[-2:], 16) & 0x80 | k:02x}"


def _digits(ordinal: int) -> str:
    if not 0 <= ordinal < MAX_MESSAGES_PER_ITEM:
        raise ValueError(f"need 0 <= ordinal < {MAX_MESSAGES_PER_ITEM}, got {ordinal!r}")
    return f"{ordinal:03x}00"


@functools.lru_cache(maxsize=1024)  # an item has several ids, made soon after each other
def _stem(job_id: str, index: int) -> str:
    if not 0 <= index < MAX_ITEMS:
        raise ValueError(f"need 0 <= index < {MAX_ITEMS}, got {index!r}")
    return f"{_checked(_JOB_ID, job_id)[4:28]}{index:07x}"


def _checked(pattern: re.Pattern[str], value: str) -> str:
    if pattern.fullmatch(value) is None:
        raise ValueError(f"not an id of the form {pattern.pattern}: {value!r}")
    return value
