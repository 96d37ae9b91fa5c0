from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Iterator

import pytest

from batchray import errors
from batchray.errors import (
    BatchFormatError,
    BatchrayError,
    ConfigError,
    JobInterruptedError,
    ModelAPIError,
    RequestError,
    StoreLockedError,
    UnknownJobError,
    WorkerDiedError,
)
from batchray.schema import StopReason

JOB = "job-1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00"


def subclasses(kind: type[BatchrayError]) -> Iterator[type[BatchrayError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__.startswith("batchray."):
            yield from subclasses(child)


def one_of_each() -> Iterator[BatchrayError]:
    """Every error of the tree, with all its arguments given, and then with the required ones only."""
    values = {"str": "a 'word'\n", "bool": False, "float": 1.5, "int | None": 7}
    values["tuple[dict[str, Any], ...]"] = ({"code": "invalid_url", "message": "bad", "line": 3, "param": "url"},)
    for kind in subclasses(BatchrayError):
        if kind.__init__ is Exception.__init__:
            yield kind("a reason")
            continue
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        yield kind(*(values[parameter.annotation] for parameter in parameters))
        required = [each for each in parameters if each.default is each.empty]
        yield kind(*(values[parameter.annotation] for parameter in required))


@pytest.mark.parametrize("error", list(one_of_each()), ids=lambda error: f"{type(error).__name__}-{len(error.args)}")
def test_every_error_survives_the_trip_to_the_driver(error: BatchrayError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    drawn: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│├└─ ]*)(\w+Error)\b", line):
            depth = len(found[1]) // 4
            drawn[found[2]] = above[depth - 1] if depth else None
            above[depth:] = [found[2]]
    real = {kind.__name__: kind.__base__.__name__ for kind in subclasses(BatchrayError) if kind.__base__ is not None}
    assert drawn == {**real, "BatchrayError": None}


def test_every_class_of_the_module_is_in_the_tree() -> None:
    defined = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__}
    assert defined == set(subclasses(BatchrayError))


@pytest.mark.parametrize("kind", list(subclasses(RequestError)))
def test_the_stop_reason_of_every_request_error_is_one_of_lettas(kind: type[RequestError]) -> None:
    assert StopReason(kind.stop_reason)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BatchFormatError("not JSON", line=3), "line 3: not JSON"),
        (BatchFormatError("not JSON", index=0), "requests[0]: not JSON"),
        (BatchFormatError("unknown key", path="input[0].texd").at(index=2), "requests[2].input[0].texd: unknown key"),
        (BatchFormatError("unknown key", path="['a b']").at(index=2), "requests[2]['a b']: unknown key"),
        (BatchFormatError("unknown key", path="imput").at(line=3), "line 3: imput: unknown key"),
        (BatchFormatError("the batch is empty"), "the batch is empty"),
        (ConfigError("unknown key 'modle'", "agents.yaml, line 4"), "agents.yaml, line 4: unknown key 'modle'"),
        (ConfigError("no agents in it"), "no agents in it"),
        (
            UnknownJobError(JOB, "data"),
            f"no job '{JOB}' in data; `batchray status` lists the jobs of a data directory",
        ),
        (
            StoreLockedError("data", "4711"),
            "process 4711 is writing to data; wait until it ends, or use another --data-dir",
        ),
        (StoreLockedError("data"), "another process is writing to data; wait until it ends, or use another --data-dir"),
        (JobInterruptedError(JOB), f"job {JOB}: interrupted"),
        (WorkerDiedError("killed by signal 9"), "killed by signal 9"),
        (ModelAPIError("rate_limited", "try again later"), "rate_limited: try again later"),
    ],
)
def test_the_text_of_an_error_names_the_cause_and_the_place(error: BatchrayError, text: str) -> None:
    assert str(error) == text
