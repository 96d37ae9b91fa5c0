"""Python functions as tools: the schema from signature and docstring, and calls with a timeout."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import inspect
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic_core import PydanticSerializationError, to_json

from batchray.errors import ConfigError
from batchray.models import ToolSpec
from batchray.schema.validation_text import all_problems
from batchray.support.thread_loop import call_with_thread_loop

P = ParamSpec("P")
T = TypeVar("T")

MAX_RETURN_CHARS = 50_000
"""Longer returns are truncated, so that one tool cannot fill a model's context or the store (Letta's default)."""

# Where the parameters begin in a docstring of Google's, NumPy's and Sphinx's style.
_PARAMETERS = re.compile(
    r"^(?:(?:Args|Arguments|Parameters|Params):[ \t]*$|Parameters[ \t]*\n-{3,}[ \t]*$|:param\b)", re.MULTILINE
)


class ToolError(Exception):
    """A failed tool call.  Its message goes to the model, and the run continues."""


@dataclass(frozen=True)
class FunctionTool:
    """A function that an agent's model may call.  `spec` is what the model sees."""

    spec: ToolSpec
    function: Callable[..., Any]
    arguments: type[BaseModel]
    timeout_s: float

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.spec.name

    async def call(self, arguments: Mapping[str, Any]) -> str:
        """Call the function and return its value as text: a string unchanged, anything else as JSON.

        Raises ToolError if the arguments do not match the schema, the function raises, or `timeout_s` passes.
        """
        try:
            checked = self.arguments.model_validate(arguments)
        except ValidationError as error:
            raise ToolError(f"arguments of {self.name}: {all_problems(error)}") from None
        fields = type(checked).model_fields.items()
        keywords = {field.alias or name: getattr(checked, name) for name, field in fields}
        try:
            async with asyncio.timeout(self.timeout_s) as limit:
                return _truncated(as_text(await call_function(self.function, **keywords)))
        except TimeoutError as error:
            if limit.expired():
                raise ToolError(f"{self.name} did not return within {self.timeout_s:g} s") from None
            raise ToolError(_error_text(error)) from error
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            raise ToolError(_error_text(error)) from error
        except (Exception, SystemExit) as error:  # any error of a tool goes to the model
            raise ToolError(_error_text(error)) from error


def load_tools(
    names: Iterable[str | Callable[..., Any]], timeout_s: float, import_paths: Sequence[str] = ()
) -> dict[str, FunctionTool]:
    """Return the tools by name.  Raises ConfigError if one cannot be imported, or two have the same name."""
    tools: dict[str, FunctionTool] = {}
    for named in names:
        tool = make_tool(load_function(named, import_paths), timeout_s)
        if tool.name in tools:
            raise ConfigError(f"two tools are named {tool.name!r}")
        tools[tool.name] = tool
    return tools


def load_function(named: str | Callable[..., Any], import_paths: Sequence[str] = ()) -> Callable[..., Any]:
    """Return the function named "package.module:function".  Raises ConfigError with the part that was not found."""
    if not isinstance(named, str):
        return named
    module_name, _, attribute = named.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{named!r} is not of the form package.module:function")
    try:
        module = _import(module_name, import_paths)
    except (Exception, SystemExit) as error:  # an import runs the user's code, which may raise anything
        raise ConfigError(f"{named!r} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        function = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise ConfigError(f"{named!r} cannot be imported: {module_name} has no {attribute!r}") from None
    if not callable(function):
        raise ConfigError(f"{named!r} is not a function")
    return function


def make_tool(function: Callable[..., Any], timeout_s: float) -> FunctionTool:
    """Build a tool from a function with annotated parameters.

    The docstring's text is the description.  Parameters are described by a section in the style of Google, NumPy or
    Sphinx, or by `Annotated[..., Field(description=...)]`.  Raises ConfigError for a signature without a JSON schema.
    """
    name = getattr(function, "__name__", type(function).__name__)
    description, described = _read_docstring(inspect.getdoc(function) or "")
    fields: dict[str, Any] = {}
    try:
        signature = inspect.signature(function, eval_str=True)
        for position, parameter in enumerate(signature.parameters.values()):
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise ConfigError(f"tool {name!r}: parameter {parameter} cannot be passed by name")
            annotation = str if parameter.annotation is parameter.empty else parameter.annotation
            default = ... if parameter.default is parameter.empty else parameter.default
            described_as = described.get(parameter.name)
            # By alias, because names such as `schema`, `copy` or `_x` are reserved in pydantic models.
            fields[f"p{position}"] = (annotation, Field(default, alias=parameter.name, description=described_as))
        arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        schema = arguments.model_json_schema()
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        raise ConfigError(f"tool {name!r} has a signature without a JSON schema: {error}") from error
    schema.pop("title", None)
    return FunctionTool(ToolSpec(name, description, schema), function, arguments, timeout_s)


async def call_function(function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
    """Call a function, sync or async.  A sync one runs in its own thread, so that it cannot block other requests.

    If the call is cancelled, the thread runs to its end: Python cannot stop it.
    """
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await function(*args, **keywords)
    value = await _in_thread(function, *args, **keywords)
    return await value if inspect.isawaitable(value) else value


async def _in_thread(function: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
    # One daemon thread per call, not a pool: a function that never returns must not use up a pool or block the exit.
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)  # type: ignore[arg-type]
        elif isinstance(error, StopIteration) or not isinstance(error, Exception | SystemExit):
            # A future cannot hold StopIteration, and the others would end the waiting task or the event loop.
            future.set_exception(RuntimeError(_error_text(error)))
        else:
            future.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = context.run(call_with_thread_loop, function, *args, **keywords)
        except BaseException as raised:  # noqa: BLE001  # passed to the waiting task, as concurrent.futures does
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name=f"batchray-{getattr(function, '__name__', 'call')}", daemon=True).start()
    return await future


def _import(name: str, paths: Sequence[str]) -> ModuleType:
    """Import a module, looking in `paths` first, except for the standard library.

    The paths stay in `sys.path`, for imports inside the module's functions.  A lane serves agents files of many
    directories, and several may have a module of the same name, such as `tools`.  One from another directory is then
    removed from `sys.modules`; functions already loaded from it keep working.
    """
    importlib.invalidate_caches()
    others = [path for path in sys.path if path not in paths]
    top = name.partition(".")[0]
    wanted = next(filter(None, (PathFinder.find_spec(top, [path]) for path in paths)), None)
    if wanted is None or top in sys.stdlib_module_names:
        sys.path[:] = [*others, *paths]
        return importlib.import_module(name)
    known = getattr(sys.modules.get(top), "__spec__", None)
    if known is not None and known.origin != wanted.origin:
        for loaded in [module for module in sys.modules if module.partition(".")[0] == top]:
            del sys.modules[loaded]
    try:
        sys.path[:] = [*paths, *others]
        return importlib.import_module(name)
    finally:
        sys.path[:] = [*others, *paths]  # at the end: a file there must not shadow a later import


def _read_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into the text before its parameters and the description of each parameter."""
    if not _PARAMETERS.search(doc):
        return doc.strip(), {}
    import docstring_parser  # here, because only tools with described parameters need it

    try:
        parameters = docstring_parser.parse(doc).params
    except docstring_parser.ParseError:
        return doc.strip(), {}
    described = {each.arg_name: " ".join(each.description.split()) for each in parameters if each.description}
    return (_PARAMETERS.split(doc, maxsplit=1)[0] if described else doc).strip(), described


def is_cancelled() -> bool:
    """Return whether the running task was cancelled; a CancelledError without that was raised by its own code."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def encodable(text: str) -> str:
    """Return text that can be encoded as UTF-8: lone surrogates, as in undecodable file names, become `?`."""
    return text.encode("utf-8", "replace").decode()


def as_text(value: Any) -> str:
    """Return a value as text: a string unchanged, anything else as JSON."""
    try:
        return encodable(value) if isinstance(value, str) else to_json(value).decode()
    except PydanticSerializationError:
        return encodable(str(value))


def _error_text(error: BaseException) -> str:
    return encodable(f"{type(error).__name__}: {error}"[:2000])


def _truncated(text: str) -> str:
    if len(text) <= MAX_RETURN_CHARS:
        return text
    return f"{text[:MAX_RETURN_CHARS]}{os.linesep}[cut after {MAX_RETURN_CHARS:,} of {len(text):,} characters]"
