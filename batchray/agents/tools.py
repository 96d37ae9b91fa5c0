"""Python functions as tools: the schema from signature and docstring, and calls with a timeout."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model

from batchray.agents.arguments import check_exact
from batchray.agents.failures import in_words, message_of
from batchray.agents.user_code import UserCodeError, call_for_text, contained, is_cancelled
from batchray.config import Agent, Tool
from batchray.config.agents import tool_to_data
from batchray.errors import ConfigError
from batchray.models import ToolSpec
from batchray.schema.validation_text import all_problems
from batchray.support.captured_output import TO_STDERR, CapturedOutput

__all__ = [
    "MAX_RETURN_CHARS",
    "TOOL_SPECS",
    "FunctionTool",
    "ToolError",
    "is_cancelled",
    "load_function",
    "load_tools",
    "make_tool",
    "specs_of_nameless",
]

MAX_RETURN_CHARS = 50_000
"""Longer returns are truncated, so that one tool cannot fill a model's context or the store (Letta's default)."""

_MAX_ERROR_CHARS = 2000
# What OpenAI, Anthropic and most others take as a tool's name.
_PROVIDERS_TAKE = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# Where the parameters begin in a docstring of Google's, NumPy's and Sphinx's style.
_PARAMETERS = re.compile(
    r"^(?:(?:Args|Arguments|Parameters|Params):[ \t]*$|Parameters[ \t]*\n-{3,}[ \t]*$|:param\b)", re.MULTILINE
)


class ToolError(Exception):
    """A failed tool call.  Its message goes to the model, and the run continues."""


@dataclass(frozen=True)
class FunctionTool:
    """A function that an agent's model may call.  `spec` is what the model sees; `idempotent` is that of its `Tool`.

    `is_instant` says that it is a coroutine function that waits for nothing: nothing else happens between the start of
    a call and its return.
    """

    spec: ToolSpec
    function: Callable[..., Any]
    arguments: type[BaseModel]
    timeout_s: float
    idempotent: bool = False
    is_instant: bool = False

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.spec.name

    async def call(
        self,
        arguments: Mapping[str, Any],
        output: CapturedOutput | None = None,
        rounded: Mapping[tuple[type, int | float], str] | None = None,
    ) -> str:
        """Call the function and return its value as text: a string unchanged, anything else as JSON.

        `output` takes what the function writes; `rounded` is that of the `Arguments`.  Raises ToolError if the
        arguments do not match the schema, the function raises, or `timeout_s` passes.
        """
        output = CapturedOutput() if output is None else output
        try:
            async with asyncio.timeout(self.timeout_s) as limit:
                keywords = self._checked(arguments, output, rounded or {})
                if self.is_instant:
                    with contained(output):
                        return _truncated(await self.function(**keywords))
                return _truncated(await call_for_text(self.function, output, **keywords))
        except (TimeoutError, UserCodeError) as error:
            if limit.expired():
                raise ToolError(f"{self.name} did not return within {self.timeout_s:g} s") from None
            raise ToolError(in_words(error)[:_MAX_ERROR_CHARS]) from error

    def _checked(
        self, arguments: Mapping[str, Any], output: CapturedOutput, rounded: Mapping[tuple[type, int | float], str]
    ) -> dict[str, Any]:
        """Return the arguments as the function takes them.  The validators of their types are users' code."""
        with contained(output):
            try:
                checked = self.arguments.model_validate(arguments)
            except ValidationError as error:
                problem: str | None = all_problems(error)
            else:
                fields = type(checked).model_fields.items()
                keywords = {field.alias or name: getattr(checked, name) for name, field in fields}
                problem = check_exact(keywords, rounded)
        if problem is not None:
            raise ToolError(f"arguments of {self.name}: {problem}")
        return keywords


def load_tools(
    given: Iterable[str | Tool | Callable[..., Any]], timeout_s: float, import_paths: Sequence[str] = ()
) -> dict[str, FunctionTool]:
    """Return the tools by name.

    Raises ConfigError if one cannot be imported, has a name that providers refuse, or has the name of another.
    """
    tools: dict[str, FunctionTool] = {}
    for each in given:
        entry = each if isinstance(each, Tool) else Tool(function=each)
        tool = make_tool(load_function(entry.function, import_paths), timeout_s, idempotent=entry.idempotent)
        if not _PROVIDERS_TAKE.fullmatch(tool.name):
            rule = "they take up to 64 of the letters a-z and A-Z, digits, _ and -; rename the function"
            raise ConfigError(f"providers refuse the tool name {tool.name!r:.200}: {rule}")
        if tool.name in tools:
            raise ConfigError(f"two tools are named {tool.name!r}")
        tools[tool.name] = tool
    return tools


TOOL_SPECS = "tool_specs"
"""The key of `specs_of_nameless` in a job's snapshot of its agents."""


def specs_of_nameless(agent: Agent) -> list[dict[str, Any]]:
    """Return the specs of an agent's tools that cannot be imported by name, as JSON, for readers without their code.

    Raises ConfigError for a tool without a JSON schema.
    """
    nameless = [tool for tool in agent.tools if tool_to_data(tool) is None]
    return [asdict(tool.spec) for tool in load_tools(nameless, agent.tool_timeout_s).values()]


def load_function(named: str | Callable[..., Any], import_paths: Sequence[str] = ()) -> Callable[..., Any]:
    """Return the function named "package.module:function".  Raises ConfigError with the part that was not found."""
    if not isinstance(named, str):
        return named
    module_name, _, attribute = named.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{named!r} is not of the form package.module:function")
    try:
        with contained(TO_STDERR):
            function: Callable[..., Any] | None = _find(module_name, attribute, import_paths)
    except UserCodeError as error:
        raise ConfigError(f"{named!r} cannot be imported: {in_words(error)[:_MAX_ERROR_CHARS]}") from error
    if function is None:
        raise ConfigError(f"{named!r} cannot be imported: {module_name} has no {attribute!r}")
    if not callable(function):
        raise ConfigError(f"{named!r} is not a function")
    return function


def _find(module_name: str, attribute: str, import_paths: Sequence[str]) -> Any:
    """Import a module and return its attribute; None if it has none of that name."""
    found: Any = _import(module_name, import_paths)
    for name in attribute.split("."):
        found = getattr(found, name, None)
    return found


def make_tool(function: Callable[..., Any], timeout_s: float, *, idempotent: bool = False) -> FunctionTool:
    """Build a tool from a function with annotated parameters.

    The docstring's text is the description.  Parameters are described by a section in the style of Google, NumPy or
    Sphinx, or by `Annotated[..., Field(description=...)]`.  Raises ConfigError for a signature without a JSON schema.
    """
    name = getattr(function, "__name__", type(function).__name__)
    description, described = _read_docstring(inspect.getdoc(function) or "")
    try:
        with contained(TO_STDERR):
            arguments = _arguments_model(name, function, described)
            schema = arguments.model_json_schema()
    except UserCodeError as error:
        if isinstance(error.raised, ConfigError):
            raise error.raised from None
        is_known = isinstance(error.raised, PydanticUserError | NameError | TypeError | ValueError)
        reason = message_of(error.raised) if is_known else in_words(error)
        raise ConfigError(f"tool {name!r} has a signature without a JSON schema: {reason}") from error
    schema.pop("title", None)
    return FunctionTool(ToolSpec(name, description, schema), function, arguments, timeout_s, idempotent)


def _arguments_model(name: str, function: Callable[..., Any], described: Mapping[str, str]) -> type[BaseModel]:
    """Return the model of a function's arguments.  Runs the code of their types, which may raise anything."""
    fields: dict[str, Any] = {}
    for position, parameter in enumerate(_parameters(function)):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"tool {name!r}: parameter {parameter} cannot be passed by name")
        annotation = str if parameter.annotation is parameter.empty else parameter.annotation
        default = ... if parameter.default is parameter.empty else parameter.default
        described_as = described.get(parameter.name)
        # By alias, because names such as `schema`, `copy` or `_x` are reserved in pydantic models.
        fields[f"p{position}"] = (annotation, Field(default, alias=parameter.name, description=described_as))
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return a function's parameters.  Its return annotation may have names that exist for type checkers only."""
    try:
        return list(inspect.signature(function, eval_str=True).parameters.values())
    except NameError:
        names = getattr(inspect.unwrap(function), "__globals__", {})
        return [
            parameter.replace(annotation=eval(parameter.annotation, names))  # as `inspect` does
            if isinstance(parameter.annotation, str)
            else parameter
            for parameter in inspect.signature(function).parameters.values()
        ]


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


def _truncated(text: str) -> str:
    if len(text) <= MAX_RETURN_CHARS:
        return text
    return f"{text[:MAX_RETURN_CHARS]}{os.linesep}[cut after {MAX_RETURN_CHARS:,} of {len(text):,} characters]"
