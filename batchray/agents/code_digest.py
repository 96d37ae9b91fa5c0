"""A digest of the Python code of an agent: whether a cell that was run again has defined the same function."""

from __future__ import annotations

import contextlib
import copyreg
import enum
import functools
import hashlib
import marshal
import string
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from batchray.agents.tools import load_function
from batchray.config import BoundAgent

# Attributes of objects that only hold other code.
_INNER = {
    functools.partial: ("func", "args", "keywords"),
    types.MethodType: ("__func__", "__self__"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    functools.cached_property: ("func",),
}
# Attributes in which classes, dataclasses and models of pydantic describe their fields.
_DESCRIBING = ("__annotations__", "__dataclass_fields__", "__pydantic_fields__")


def code_digest(bound: BoundAgent) -> str | None:
    """Return a digest of what the agent's function and tools do, as far as their code tells.

    It covers the compiled code, defaults, constants and variables that the code uses, as far as they are values, and
    the functions, classes and objects of its own module that it uses, but not the code of other modules.  Empty for an
    agent without code; None for code that is not a Python function, such as a builtin or an object with `__call__`, and
    for one that uses values nested too deeply.
    """
    given = (bound.agent.run, *bound.agent.tool_functions)
    functions = [load_function(each, bound.import_paths) for each in given if each is not None]
    if not functions:
        return ""
    if not all(isinstance(function, types.FunctionType) for function in functions):
        return None
    walk = _Walk()
    try:
        for function in functions:
            walk.add(function)
    except RecursionError:
        return None
    return walk.digest.hexdigest()


class _Walk:
    """Adds functions and what they use to one digest, each object once."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self._seen: dict[int, tuple[int, Any]] = {}  # the objects too: the ids of those that are gone are given again

    def add(self, value: Any, module: str = "", *, is_part: bool = False) -> None:
        """Add a value that code of `module` uses; `is_part` if it is the state of another value."""
        match value:
            case None | bool() | int() | float() | complex() | str() | bytes() if type(value).__module__ == "builtins":
                self._write(repr(value))
            case types.FunctionType():
                self._name(value)
                is_own = not module or value.__module__ == module
                self._once(value, self._function if is_own else lambda foreign: self._closure(foreign, module))
            case type():
                self._name(value)
                if value.__module__ == module:
                    self._once(value, self._class)
            case tuple() | list() | set() | frozenset() | dict() | types.MappingProxyType():
                self._name(type(value))
                self._container(value, module, is_part=is_part)
            case types.ModuleType() | types.BuiltinFunctionType():
                self._write(value.__name__)
            case _:
                self._name(type(value))
                self._once(value, lambda given: self._object(given, module, is_part=is_part))

    def _once(self, value: Any, add: Callable[[Any], None]) -> None:
        """Add a value, or only its number if it was added before."""
        if (found := self._seen.get(id(value))) is not None:
            self._write(f"#{found[0]}")
            return
        self._seen[id(value)] = len(self._seen), value
        add(value)

    def _function(self, function: types.FunctionType) -> None:
        module = function.__module__
        self._code(function.__code__, module)
        self.add(function.__defaults__, module)
        self.add(function.__kwdefaults__, module)
        self._closure(function, module)
        for name in sorted(set(_names(function.__code__))):
            if name in function.__globals__:
                self._write(name)
                self.add(function.__globals__[name], module)

    def _closure(self, function: types.FunctionType, module: str) -> None:
        """Add what a function encloses.  A decorator of another module encloses the function that it decorates."""
        for cell in function.__closure__ or ():
            content = _content(cell)
            self.add(content, content.__module__ if isinstance(content, types.FunctionType) else module)

    def _class(self, class_: type) -> None:
        module = class_.__module__
        for base in class_.__bases__:
            self.add(base, module)
        for name, value in sorted(vars(class_).items()):
            is_special = name.startswith("__") and name.endswith("__")
            if not is_special or name in _DESCRIBING or isinstance(value, types.FunctionType):
                self._write(name)
                self.add(value, module, is_part=name in _DESCRIBING)

    def _container(self, value: Any, module: str, *, is_part: bool) -> None:
        with contextlib.suppress(ValueError):  # a value of another type is in it, or it is in itself
            self._write_bytes(marshal.dumps(value, 0))
            return
        self._once(value, lambda given: self._elements(given, module, is_part=is_part))

    def _elements(self, value: Any, module: str, *, is_part: bool) -> None:
        if isinstance(value, set | frozenset):
            value = sorted(value, key=repr)
        elif isinstance(value, Mapping):
            value = [part for item in value.items() for part in item]
        for each in value:
            self.add(each, module, is_part=is_part)

    def _object(self, value: Any, module: str, *, is_part: bool) -> None:
        """Add the state of an object.

        That of an object of another module counts if its class says which objects are equal, as those of values do:
        dates, paths, patterns, arrays.  Clients and locks do not, and change while they are used.
        """
        kind = type(value)
        if isinstance(value, enum.Enum):
            self._write(value.name)
            self.add(value.value, module)
        elif isinstance(value, string.Template):
            self._write(value.template)
        elif (inner := _INNER.get(kind)) is not None:
            for name in inner:
                self.add(getattr(value, name), module)
        elif kind.__module__ == module:
            self.add(kind, module)
            self.add({**getattr(value, "__dict__", {}), **_slots(value)}, module)
        elif (wrapped := getattr(value, "__dict__", {}).get("__wrapped__")) is not None:  # by functools.cache, for one
            self.add(wrapped, module)
        elif is_part or (_is_value(kind) and not isinstance(value, Mapping)):
            for part in _reduced(value):
                self.add(part, module, is_part=True)

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
        self._write_bytes(text.encode(errors="surrogatepass"))

    def _write_bytes(self, data: bytes) -> None:
        self.digest.update(len(data).to_bytes(8, "big"))
        self.digest.update(data)


def _is_value(kind: type) -> bool:
    """Whether a class says when its objects are equal."""
    return any("__eq__" in vars(each) for each in kind.__mro__[:-1])


def _reduced(value: Any) -> list[Any]:
    """Return what a value is made of, as pickle sees it; nothing if it cannot be pickled."""
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        made: Any = reduce(value) if reduce is not None else value.__reduce_ex__(4)
    except Exception:  # noqa: BLE001  # it is code of any package
        return []
    return [list(part) if isinstance(part, Iterator) else part for part in made] if isinstance(made, tuple) else [made]


def _slots(value: Any) -> dict[str, Any]:
    names = [name for kind in type(value).__mro__ for name in _as_tuple(vars(kind).get("__slots__", ()))]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _as_tuple(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


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
