from __future__ import annotations

import asyncio
import contextvars
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from batchray.agents.tools import (
    MAX_RETURN_CHARS,
    FunctionTool,
    ToolError,
    load_function,
    load_tools,
    make_tool,
)
from batchray.agents.user_code import call_for_text
from batchray.errors import ConfigError
from batchray.support.captured_output import CapturedOutput

REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST")


class Place(BaseModel):
    city: str
    zip: int | None = None


def weather(place: Place, unit: Literal["C", "F"] = "C", days: Annotated[int, Field(ge=1)] = 1) -> dict[str, Any]:
    """Tell the weather.

    For any city.

    Args:
        place: Where to look,
            in words.
        unit (str): Degrees.
    """
    return {"city": place.city, "unit": unit, "days": days}


async def later(text: str) -> str:
    await asyncio.sleep(0)
    return text


def awkward(schema: str, copy: int, model_config: str, _x: bool = False) -> str:
    return f"{schema} {copy} {model_config} {_x}"


def boom() -> None:
    raise LookupError("no such thing")


class Untellable:
    def __str__(self) -> str:
        raise LookupError("no words")


def untellable() -> object:
    return Untellable()


def leave() -> None:
    sys.exit(3)


def time_out() -> None:
    raise TimeoutError("the other side")


def never_found() -> None:
    next(iter(()))


def interrupt() -> None:
    raise KeyboardInterrupt


async def cancel_itself() -> None:
    raise asyncio.CancelledError


def tool(function: Callable[..., Any], timeout_s: float = 30.0) -> FunctionTool:
    return make_tool(function, timeout_s)


def test_the_schema_comes_from_signature_and_docstring() -> None:
    spec = tool(weather).spec
    assert (spec.name, spec.description) == ("weather", "Tell the weather.\n\nFor any city.")
    assert spec.parameters["required"] == ["place"]
    assert spec.parameters["additionalProperties"] is False
    properties = spec.parameters["properties"]
    assert properties["place"]["description"] == "Where to look, in words."
    assert properties["unit"] == {
        "default": "C",
        "description": "Degrees.",
        "enum": ["C", "F"],
        "title": "Unit",
        "type": "string",
    }
    assert json.loads(json.dumps(spec.parameters)) == spec.parameters


GOOGLE = """Find a place.

In any country.

Args:
    city: The city's name,
        in any language.
    limit (int, optional): How many
        to return.

Returns:
    The places.
"""
NUMPY = """Find a place.

In any country.

Parameters
----------
city : str
    The city's name,
    in any language.
limit : int, optional
    How many to return.

Returns
-------
list[str]
    The places.
"""
SPHINX = """Find a place.

In any country.

:param city: The city's name,
    in any language.
:param int limit: How many to return.
:returns: The places.
:raises ValueError: For no city.
"""


@pytest.mark.parametrize("doc", [GOOGLE, NUMPY, SPHINX], ids=["Google", "NumPy", "Sphinx"])
def test_each_docstring_style_describes_the_parameters(doc: str) -> None:
    def find(city: str, limit: int = 1) -> None: ...

    find.__doc__ = doc
    spec = tool(find).spec
    assert spec.description == "Find a place.\n\nIn any country."
    described = {name: each["description"] for name, each in spec.parameters["properties"].items()}
    assert described == {"city": "The city's name, in any language.", "limit": "How many to return."}


@pytest.mark.parametrize(
    "doc",
    [
        "",
        "Say: hi.\n\nReturns:\n    It.",
        "Parameters\n---\n",
        "Args:\n",
        ":param",
        "Args:\n\n(",
        "Note: Args: none.",
    ],
)
def test_a_docstring_without_described_parameters_is_the_description(doc: str) -> None:
    def find(city: str) -> None: ...

    find.__doc__ = doc
    spec = tool(find).spec
    assert (spec.description, "description" in spec.parameters["properties"]["city"]) == (doc.strip(), False)


async def test_arguments_are_checked_and_converted() -> None:
    text = await tool(weather).call({"place": {"city": "Ulm", "zip": "89073"}, "days": 2})
    assert json.loads(text) == {"city": "Ulm", "unit": "C", "days": 2}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "place: Field required"),
        ({"place": {"city": "Ulm"}, "unit": "K"}, "unit: Input should be 'C' or 'F'"),
        ({"place": {"city": "Ulm"}, "days": 0}, "days: Input should be greater than or equal to 1"),
        ({"place": {"city": 1}}, "place.city: Input should be a valid string"),
        ({"place": {"city": "Ulm"}, "planet": "Mars"}, "planet: Extra inputs are not permitted"),
        ([], "Input should be a valid dictionary"),
    ],
)
async def test_invalid_arguments_are_reported_by_name(arguments: Any, complaint: str) -> None:
    with pytest.raises(ToolError, match=r"^arguments of weather: ") as caught:
        await tool(weather).call(arguments)
    assert complaint in str(caught.value)


async def test_parameters_can_have_any_name() -> None:
    made = tool(awkward)
    assert list(made.spec.parameters["properties"]) == ["schema", "copy", "model_config", "_x"]
    assert await made.call({"schema": "s", "copy": 2, "model_config": "m", "_x": True}) == "s 2 m True"


async def test_async_functions_and_objects_and_partials_are_tools_too() -> None:
    class Greeter:
        async def __call__(self, name: str) -> str:
            return f"hello {name}"

    greet = tool(Greeter())
    assert (greet.name, await greet.call({"name": "Ann"})) == ("Greeter", "hello Ann")
    assert await tool(later).call({"text": "x"}) == "x"
    assert await call_for_text(partial(later, "y"), CapturedOutput()) == "y"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (boom, "LookupError: no such thing"),
        (untellable, "LookupError: no words"),
        (leave, "SystemExit: 3"),
        (time_out, "TimeoutError: the other side"),
        (never_found, "StopIteration"),
        (interrupt, "KeyboardInterrupt"),
        (cancel_itself, "CancelledError"),
    ],
)
async def test_any_exception_of_a_tool_is_a_tool_error(function: Callable[..., Any], told: str) -> None:
    with pytest.raises(ToolError) as caught:
        await tool(function).call({})
    assert str(caught.value) == told


async def test_a_cancelled_call_is_cancelled() -> None:
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(tool(wait).call({}))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_tool_that_does_not_return_in_time_is_an_error() -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait()

    with pytest.raises(ToolError, match=r"^hang did not return within 0\.01 s$"):
        await tool(hang, 0.01).call({})
    release.set()


async def test_many_functions_that_never_return_do_not_block_the_next() -> None:
    release = threading.Event()
    hanging = [tool(lambda: release.wait(), 0.01).call({}) for _ in range(50)]
    assert all(isinstance(result, ToolError) for result in await asyncio.gather(*hanging, return_exceptions=True))
    assert await tool(weather).call({"place": {"city": "Ulm"}})
    release.set()


async def test_a_blocking_function_leaves_the_loop_free() -> None:
    main = threading.get_ident()

    def where() -> str:
        return f"{threading.get_ident() == main} {REQUEST.get()}"

    REQUEST.set("context goes along")
    assert await tool(where).call({}) == "False context goes along"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (None, "null"),
        (Place(city="Ulm"), '{"city":"Ulm","zip":null}'),
        (1 + 2j, '"1+2j"'),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        (["\ud800"], "['\\ud800']"),
        (range, "<class 'range'>"),
        (b"\xff", "b'\\xff'"),
    ],
)
async def test_any_value_becomes_text(value: Any, text: str) -> None:
    assert await tool(lambda: value).call({}) == text


@given(st.recursive(st.none() | st.floats() | st.integers() | st.text(st.characters()), st.lists, max_leaves=5))
def test_the_text_of_any_value_can_be_encoded(value: Any) -> None:
    assert asyncio.run(tool(lambda: value).call({})).encode() is not None


async def test_a_long_return_is_truncated_with_a_note() -> None:
    text = await tool(lambda: "x" * (MAX_RETURN_CHARS + 1)).call({})
    assert text.startswith("x" * MAX_RETURN_CHARS)
    assert text.endswith("[cut after 50,000 of 50,001 characters]")
    assert await tool(lambda: "x" * MAX_RETURN_CHARS).call({}) == "x" * MAX_RETURN_CHARS


def test_a_signature_without_a_schema_is_refused() -> None:
    def many(*names: str) -> None: ...
    def keywords(**names: str) -> None: ...
    def positional(name: str, /) -> None: ...
    def unknown(name: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def lock(name: threading.Event) -> None: ...
    def callback(name: Callable[[], int]) -> None: ...

    for function in (many, keywords, positional, unknown, lock, callback, iter):
        with pytest.raises(ConfigError, match=f"^tool '{function.__name__}'"):
            tool(function)


def test_a_return_annotation_may_name_what_only_type_checkers_know() -> None:
    def table(rows: int, place: Place) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821

    assert list(tool(table).spec.parameters["properties"]) == ["rows", "place"]
    assert tool(table).spec.parameters["properties"]["rows"]["type"] == "integer"


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two tools are named 'weather'"):
        load_tools([weather, weather], 1.0)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for modules that only this test knows."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_functions_are_found_in_the_agents_files_directory(code: Path) -> None:
    name = f"their_tools_{time.monotonic_ns()}"
    (code / f"{name}.py").write_text("class A:\n    @staticmethod\n    def f() -> int: return 1\nX = 5\n")
    assert load_function(f"{name}:A.f", [str(code)])() == 1
    with pytest.raises(ConfigError, match=f"'{name}:g' cannot be imported: {name} has no 'g'"):
        load_function(f"{name}:g", [str(code)])
    with pytest.raises(ConfigError, match=f"'{name}:X' is not a function"):
        load_function(f"{name}:X", [str(code)])


def test_the_standard_library_wins_over_a_file_of_the_agents_files_directory(code: Path) -> None:
    (code / "json.py").write_text("raise RuntimeError('not this one')\n")
    assert load_function("json:loads", [str(code)]) is json.loads


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def f(: pass", "SyntaxError: "),
        ("raise ValueError('at import')", "ValueError: at import"),
        ("import sys; sys.exit(2)", "SystemExit: 2"),
    ],
)
def test_code_that_cannot_be_imported_is_refused_with_the_reason(code: Path, source: str, reason: str) -> None:
    name = f"their_broken_tools_{time.monotonic_ns()}"
    (code / f"{name}.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        load_function(f"{name}:f", [str(code)])
    assert f"'{name}:f' cannot be imported: {reason}" in str(caught.value)


@pytest.mark.parametrize("name", ["module", ":f", "module:", ""])
def test_a_name_without_module_and_function_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not of the form package\.module:function"):
        load_function(name)


def test_modules_of_one_name_from_two_directories_do_not_mix(tmp_path: Path) -> None:
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "mine_twice.py").write_text(f"def where():\n    return {directory!r}\n")
    one = load_function("mine_twice:where", [str(tmp_path / "one")])
    two = load_function("mine_twice:where", [str(tmp_path / "two")])

    assert (one(), two()) == ("one", "two")
