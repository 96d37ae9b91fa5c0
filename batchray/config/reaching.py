"""Types of the options that say how a provider is reached.  Their errors never contain a value, which may be secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from batchray.config.variables import has_variable
from batchray.schema.secret_names import is_secret_name

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding"})
# Protocols by the end of an address that is the whole path of a call.
_CALL_PATHS = {"/chat/completions": "openai", "/responses": "responses", "/messages": "anthropic"}


def _text(name: str, value: Any) -> str:
    """Return a value of YAML as text; a date, a whole number or a boolean is what an unquoted text looks like."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int() | date():
            return str(value)
    raise ValueError(f"write the value of {name!r} in quotes")


def _texts(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    return {str(name): _text(str(name), value) for name, value in given.items()}


def _headers(given: Any) -> Any:
    headers = _texts(given)
    for name in headers if isinstance(headers, Mapping) else ():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a header")
        if name.lower() in _FRAMING:
            raise ValueError(f"{name!r} is set by the connection")
    return headers


def _proxy(given: Any) -> Any:
    if given not in (None, False) and not isinstance(given, str):
        raise ValueError("give the address of a proxy, or false for none")
    if isinstance(given, str) and not has_variable(given):
        user = given.rpartition("://")[2].rpartition("@")[0]
        if ":" in user:
            raise ValueError("write the password of the proxy as ${VAR}, because providers are stored with their jobs")
    return given


def check_address(protocol: str, base_url: str | None) -> None:
    """Raise ValueError for a provider's address that cannot be used, or that would store a secret."""
    if base_url is None and protocol not in ("anthropic", "responses"):
        raise ValueError(f"protocol {protocol} needs a base_url that starts with http:// or https://")
    if base_url is None or has_variable(base_url):
        return
    if not re.match(r"https?://[^/]", base_url):
        raise ValueError(f"protocol {protocol} needs a base_url that starts with http:// or https://")
    parts = urlsplit(base_url)
    for name, _value in parse_qsl(parts.query):
        if is_secret_name(name):
            raise ValueError(
                f"move {name!r} from base_url into `query`, as ${{VAR}}: an address is stored with its jobs"
            )
    for path, speaks in _CALL_PATHS.items():
        if parts.path.rstrip("/").endswith(path) and protocol != speaks:
            raise ValueError(f"base_url ends in {path}, which is protocol {speaks}, not {protocol}")


Auth = Literal["bearer", "x-api-key", "api-key"]

Headers = Annotated[Mapping[str, str], BeforeValidator(_headers), Field(repr=False)]
Query = Annotated[Mapping[str, str], BeforeValidator(_texts), Field(repr=False)]
Proxy = Annotated[Literal[False] | str | None, BeforeValidator(_proxy)]
CaFile = Annotated[str, AfterValidator(lambda file: str(Path(file).expanduser().absolute()))]
