"""A digest of the Python code of an agent: whether a cell that was run again has defined the same function."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from batchray.agents.tools import load_function
from batchray.config import BoundAgent


def code_digest(bound: BoundAgent) -> str | None:
    """Return a digest of what the agent's function and tools do, as far as their code tells.

    It covers the compiled code, defaults, constants and variables of simple types that the code uses, and the functions
    and classes of its own module that it uses, but not the code of other modules.  Empty for an agent without code;
    None for code that is no Python function, such as a builtin or an object with `__call__`.
    """
    given = [bound.agent.run, *bound.agent.tools] if bound.agent.run is not None else list(bound.agent.tools)
    functions = [load_function(each, bound.import_paths) for each in given if each is not None]
    if not functions:
        return ""
    if not all(isinstance(function, types.FunctionType) for function in functions):
        return None
    walk = _Walk()
    for function in functions:
        walk.add(function)
    return walk.digest.hexdigest()


class _Walk:
    """Adds functions and what they use to one digest, each object once."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self._seen: set[int] = set()

    def add(self, value: Any, module: str = "") -> None:
        """Add a value that code of `module` uses."""
        match value:
            case types.FunctionType():
                is_own = not module or value.__module__ == module
                self._name(value)
                if is_own:
                    self._once(value, self._function)
            case type():
                self._name(value)
                if value.__module__ == module:
                    self._once(value, self._class)
            case None | bool() | int() | float() | complex() | str() | bytes():
                self._write(repr(value))
            case tuple() | list() | frozenset() | set():
                self._write(type(value).__name__)
                for each in sorted(value, key=repr) if isinstance(value, set | frozenset) else value:
                    self.add(each, module)
            case Mapping():
                for name in value:
                    self.add(name, module)
                    self.add(value[name], module)
            case _:
                self._name(type(value))

    def _once(self, value: Any, add: Callable[[Any], None]) -> None:
        if id(value) not in self._seen:
            self._seen.add(id(value))
            add(value)

    def _function(self, function: types.FunctionType) -> None:
        module = function.__module__
        self._code(function.__code__, module)
        self.add(function.__defaults__, module)
        self.add(function.__kwdefaults__, module)
        for cell in function.__closure__ or ():
            if (content := _content(cell)) is not function:
                self.add(content, module)
        for name in sorted(set(_names(function.__code__))):
            if name in function.__globals__:
                self._write(name)
                self.add(function.__globals__[name], module)

    def _class(self, class_: type) -> None:
        for name, value in sorted(vars(class_).items()):
            if isinstance(value, types.FunctionType | str | int | float):
                self._write(name)
                self.add(value, class_.__module__)

    def _code(self, code: types.CodeType, module: str) -> None:
        self._write(repr((code.co_code, code.co_names, code.co_varnames, code.co_flags)))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, module)
            else:
                self.add(constant, module)

    def _name(self, value: Any) -> None:
        self._write(f"{value.__module__}.{value.__qualname__}")

    def _write(self, text: str) -> None:
        data = text.encode(errors="surrogatepass")
        self.digest.update(len(data).to_bytes(8, "big") + data)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of globals that the code, or code inside it, may use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
