"""Outcomes that a new job takes over from an earlier one: only of equal requests to equal agents."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import pathlib
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pydantic
import pytest

import batchray
from batchray import Agent, AgentRequest
from batchray.agents.code_digest import code_digest
from batchray.config import BoundAgent, bind_agents
from batchray.errors import ConfigError
from batchray.jobs import reuse
from batchray.schema import new_job_id

calls: list[str] = []


def answer(request: AgentRequest) -> str:
    calls.append(str(request.input))
    if request.input == "fails":
        raise ValueError("fails")
    return f"{request.input}!"


def other_answer(request: AgentRequest) -> str:
    calls.append(str(request.input))
    return f"{request.input}?"


def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"data_dir": tmp_path / "data", "executor": "local", "progress": False}


def requests(*texts: str, agent_id: str = "a", **fields: Any) -> list[dict[str, Any]]:
    return [{"agent_id": agent_id, "input": text, **fields} for text in texts]


FUNCTION = Agent(id="a", run=answer)
MODEL = Agent(id="a", model="offline/rules", prices={"input": 1, "output": 1})


def test_only_new_and_failed_requests_run(options: dict[str, Any]) -> None:
    first = batchray.run(requests("x", "fails", "y"), [FUNCTION], **options)
    calls.clear()
    second = batchray.run(requests("new", "y", "fails", "x"), [FUNCTION], reuse=first, **options)
    assert sorted(calls) == ["fails", "new"]
    assert second.counts == {"succeeded": 3, "errored": 1, "canceled": 0, "expired": 0}
    results = list(second.results("index"))
    assert [result.text for result in results] == ["new!", "y!", "", "x!"]
    before = {result.index: result for result in first.results()}
    assert results[3].timing == before[0].timing
    assert [result.index for result in second.results("finish")][:2] == [1, 3]


def test_a_job_whose_outcomes_are_all_known_runs_nothing(options: dict[str, Any]) -> None:
    first = batchray.run(requests("x", "y"), [MODEL], **options)
    second = batchray.run(requests("x", "y", custom_id="c", metadata={"n": 1}), [MODEL], reuse=first.id, **options)
    assert second.status == "completed"
    assert second.record().prompt_tokens == first.record().prompt_tokens > 0
    assert [(each.text, each.custom_id) for each in second.results("index")] == [
        (each.text, "c") for each in first.results("index")
    ]
    started = {each.timing.duration_ns for each in second.results()}
    assert started == {each.timing.duration_ns for each in first.results()}


def test_the_code_of_an_agent_is_read_once(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(bound: BoundAgent) -> str | None:
        read.append(bound.agent.id)
        return code_digest(bound)

    monkeypatch.setattr(reuse, "code_digest", counted)
    first = batchray.run(requests("x"), [FUNCTION], **options)
    read.clear()
    calls.clear()
    batchray.run(requests("x"), [FUNCTION], reuse=first, **options)
    assert (read, calls) == (["a"], [])


def test_repeats_take_over_one_outcome_each(options: dict[str, Any]) -> None:
    first = batchray.run(requests("x", "x"), [FUNCTION], **options)
    calls.clear()
    second = batchray.run(requests("x", "x", "x"), [FUNCTION], reuse=first, **options)
    assert calls == ["x"]
    taken = [each.timing.duration_ns for each in second.results("index")][:2]
    assert taken == [each.timing.duration_ns for each in first.results("index")]


@pytest.mark.parametrize(
    "changed",
    [
        {"system": "Be brief."},
        {"temperature": 0.5},
        {"model": "offline/scripted", "script": [{"text": "x"}]},
        {"max_steps": 3},
        {"tools": [double]},
    ],
)
def test_an_outcome_of_another_agent_is_not_reused(changed: dict[str, Any], options: dict[str, Any]) -> None:
    first = batchray.run(requests("x"), [MODEL], **options)
    agent = Agent(**{**MODEL.model_dump(exclude_unset=True), **changed})
    second = batchray.run(requests("x"), [agent], reuse=first, **options)
    assert _durations(second) != _durations(first)


def _durations(job: batchray.Job) -> list[int]:
    return [each.timing.duration_ns for each in job.results("index")]


def test_labels_and_ids_make_no_difference(options: dict[str, Any]) -> None:
    first = batchray.run(requests("x"), [FUNCTION], **options)
    calls.clear()  # a variable that the function uses
    [variant] = batchray.variants(FUNCTION, run=[answer])
    second = batchray.run(requests("x", agent_id=variant.id), [variant], reuse=first, **options)
    assert _durations(second) == _durations(first)


def test_a_function_that_was_redefined_runs(options: dict[str, Any]) -> None:
    first = batchray.run(requests("x"), [FUNCTION], **options)
    second = batchray.run(requests("x"), [Agent(id="a", run=other_answer)], reuse=first, **options)
    assert next(second.results()).text == "x?"


def test_a_function_sees_the_names_of_a_request(options: dict[str, Any]) -> None:
    first = batchray.run(requests("x", custom_id="1"), [FUNCTION], **options)
    calls.clear()
    batchray.run(requests("x", custom_id="2"), [FUNCTION], reuse=first, **options)
    assert calls == ["x"]


def test_a_stateful_agent_is_asked_again(options: dict[str, Any]) -> None:
    agent = Agent(id="a", model="offline/rules", stateful=True)
    first = batchray.run(requests("x"), [agent], **options)
    second = batchray.run(requests("x"), [agent], reuse=first, **options)
    assert _durations(second) != _durations(first)


def test_reuse_of_an_unknown_job_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"reuse: .* within one data directory or database"):
        batchray.run(requests("x"), [FUNCTION], reuse=new_job_id(), **options)
    assert calls == []


def _digest(function: Callable[..., Any]) -> str | None:
    return code_digest(bind_agents([Agent(id="a", run=function)], {}, {}).agents["a"])


def _defined(source: str, **names: Any) -> Callable[..., Any]:
    scope: dict[str, Any] = {"__name__": "cell", **names}
    exec(compile(source, f"<cell {len(source)}>", "exec", dont_inherit=True), scope)  # as a notebook does
    return scope["f"]  # type: ignore[no-any-return]


CELL = """\
def g(x):
    return x + STEP

def f(request, y=1):
    def inner():
        return g(y)
    return inner()
"""


def test_a_cell_that_is_run_again_defines_the_same_function() -> None:
    assert _digest(_defined(CELL, STEP=1)) == _digest(_defined("# a comment\n" + CELL, STEP=1))


@pytest.mark.parametrize(
    "changed",
    [
        _defined(CELL, STEP=2),
        _defined(CELL.replace("y=1", "y=2"), STEP=1),
        _defined(CELL.replace("x + STEP", "x - STEP"), STEP=1),
        _defined(CELL.replace("return g(y)", "return g(y + 1)"), STEP=1),
    ],
)
def test_a_change_of_code_or_globals_that_a_function_uses_changes_its_digest(changed: Callable[..., Any]) -> None:
    assert _digest(changed) != _digest(_defined(CELL, STEP=1))


def test_closures_recursion_and_classes_have_digests() -> None:
    def adds(n: int) -> Callable[[AgentRequest], str]:
        return lambda request: f"{request.input}{n}"

    assert _digest(adds(1)) == _digest(adds(1)) != _digest(adds(2))
    recursive = "def f(n):\n    return f(n - 1) if n else {}\n"
    assert _digest(_defined(recursive.format(1))) != _digest(_defined(recursive.format(2)))
    with_class = "class C:\n    def m(self):\n        return {}\n\ndef f(request):\n    return C().m()\n"
    assert _digest(_defined(with_class.format(1))) == _digest(_defined(with_class.format(1)))
    assert _digest(_defined(with_class.format(1))) != _digest(_defined(with_class.format(2)))
    assert _digest(functools.partial(answer)) is None


# The parts of a cell in whose place 1 becomes 2: what its function uses besides functions and simple values.
USED = {
    "a cached function": "@functools.cache\ndef g():\n    return {}",
    "a partial": "g = functools.partial(print, {})",
    "an object's state": "class C:\n    def __init__(self, n):\n        self.n = n\ng = C({})",
    "an object with slots": "class C:\n    __slots__ = 'n'\n    def __init__(self, n):\n        self.n = n\ng = C({})",
    "an object's code": "class C:\n    def m(self):\n        return {}\ng = C()",
    "a bound method": "class C:\n    def m(self):\n        return {}\ng = C().m",
    "a static method": "class g:\n    @staticmethod\n    def m():\n        return {}",
    "a property": "class g:\n    @property\n    def p(self):\n        return {}",
    "a list of a class": "class g:\n    items = [{}]",
    "a base class": "class B:\n    def m(self):\n        return {}\nclass g(B):\n    pass",
    "a default of a dataclass": "@dataclasses.dataclass\nclass g:\n    n: int = {}",
    "a factory": "@dataclasses.dataclass\nclass g:\n    n: int = dataclasses.field(default_factory=lambda: {})",
    "a default of a model": "class g(pydantic.BaseModel):\n    n: int = {}",
    "a model": "class M(pydantic.BaseModel):\n    n: int\ng = M(n={})",
    "a pattern": "g = re.compile('{}')",
    "a template": "g = string.Template('{}')",
    "a path": "g = pathlib.Path('{}')",
    "a date": "g = datetime.date(2020, 1, {})",
    "an array": "g = numpy.array([{}])",
    "a member of an enumeration": "g = enum.Enum('E', {{'A': {}}}, module=__name__).A",
    "a list in itself": "g = [{}]\ng.append(g)",
}
DECORATED = "def f(request):\n    return {}\nf = timed(f)"


def _with_used(source: str, number: int) -> Callable[..., Any]:
    modules = (dataclasses, datetime, enum, functools, numpy, pathlib, pydantic, re, string)
    text = source.format(number) + "\n\ndef f(request):\n    return g\n"
    return _defined(text, **{module.__name__: module for module in modules})


@pytest.mark.parametrize("used", USED.values(), ids=USED)
def test_the_globals_of_a_function_are_compared_by_their_content(used: str) -> None:
    assert _digest(_with_used(used, 1)) == _digest(_with_used(used, 1)) != _digest(_with_used(used, 2))


def test_a_decorator_of_another_module_hides_no_change() -> None:
    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda request: function(request)

    one, again, two = (_digest(_defined(DECORATED.format(n), timed=timed)) for n in (1, 1, 2))
    assert one == again != two


def test_a_client_may_change_while_it_is_used() -> None:
    class Client:
        """An object of another module, without a definition of what is equal."""

    first, second = Client(), Client()
    first.__dict__["calls"] = 5
    same = {_digest(_defined("def f(request):\n    return client", client=each)) for each in (first, second)}
    assert len(same) == 1
    nested: list[Any] = [Client()]
    for _ in range(5000):
        nested = [nested]
    assert _digest(_defined("def f(request):\n    return deep", deep=nested)) is None
