"""How a worker reaches a provider: address, headers, query, proxy and certificates, with the values of variables."""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from batchray.config.agents import Provider
from batchray.config.proxies import checked_proxy, environment_proxy
from batchray.config.variables import expand, has_variable
from batchray.errors import ConfigError
from batchray.schema.secret_names import is_secret_name

OPENAI_URL = "https://api.openai.com/v1"
"""OpenAI's own server."""
ANTHROPIC_URL = "https://api.anthropic.com"
"""Anthropic's own server."""

# Where a protocol goes if the provider has no address.
_OWN_URLS = {"anthropic": ANTHROPIC_URL, "responses": OPENAI_URL}

_MAX_CA_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, repr=False)
class Access:
    """The values by which a provider is reached.  Workers get them inside pickled bytes; no repr or snapshot has them.

    `ca_pem` holds the content of the provider's `ca_file`, which need not exist where the workers are.
    """

    base_url: str
    headers: tuple[tuple[str, str], ...] = ()
    query: tuple[tuple[str, str], ...] = ()
    proxy: str | None = None
    ca_pem: str | None = None
    secrets: tuple[str, ...] = ()


def endpoint_id(name: str, provider: Provider, key: SecretStr | None, access: Access | None) -> str:
    """Return what tells apart providers that take calls independently: name, address, key and access, as a digest."""
    secret = key.get_secret_value() if key else None
    parts = (name, provider.base_url, secret, astuple(access) if access else None)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def access_of(name: str, provider: Provider, environment: Mapping[str, str]) -> Access:
    """Return how to reach a provider from this environment.  Raises ConfigError for what cannot be used."""
    secrets: set[str] = set()

    def expanded(text: str, what: str) -> str:
        try:
            return expand(text, environment, secrets).strip()  # a file's line feed at the end of a variable
        except ValueError as error:
            raise ConfigError(f"provider {name!r}: {what}: {error}") from None

    base_url = expanded(provider.base_url or _OWN_URLS[provider.protocol], "base_url")
    if not re.match(r"https?://[^/]", base_url):
        raise ConfigError(f"provider {name!r}: base_url, expanded, does not start with http:// or https://")
    headers = {key: expanded(value, f"header {key!r}") for key, value in provider.headers.items()}
    query = {key: expanded(value, f"query {key!r}") for key, value in provider.query.items()}
    proxy = _proxy(name, provider, base_url, environment, secrets)
    ca_pem = _certificates(name, provider.ca_file) if provider.ca_file else None
    return Access(base_url, tuple(headers.items()), tuple(query.items()), proxy, ca_pem, tuple(sorted(secrets)))


def stored_provider(provider: Provider) -> dict[str, Any]:
    """Return a provider as it is stored with a job: null in place of a secret that its file has written out."""
    data = provider.model_dump(mode="json")
    for field in ("headers", "query"):
        data[field] = {key: None if _is_secret(key, value) else value for key, value in data[field].items()}
    return data


def restored_provider(name: str, kept: Mapping[str, Any], known: Mapping[str, Provider]) -> Provider:
    """Return a stored provider with the secrets that were not stored, from the known provider of its name.

    Raises ConfigError if there is none.
    """
    data = dict(kept)
    for field in ("headers", "query"):
        given = getattr(known[name], field) if name in known else {}
        data[field] = {key: given.get(key) if value is None else value for key, value in kept.get(field, {}).items()}
        if missing := [key for key, value in data[field].items() if value is None]:
            raise ConfigError(
                f"provider {name!r}: the value of {missing[0]!r} under {field} is not stored with the job, because it "
                "seems to be secret; give the agents file again (--agents), or write the value as ${VAR}"
            )
    return Provider.model_validate(data)


def _is_secret(key: str, value: str) -> bool:
    return is_secret_name(key) and not has_variable(value)


def _proxy(
    name: str, provider: Provider, base_url: str, environment: Mapping[str, str], secrets: set[str]
) -> str | None:
    if provider.proxy is False:
        return None
    source, proxy = "proxy", provider.proxy
    try:
        if proxy is not None:
            proxy = expand(proxy, environment, secrets)
        elif found := environment_proxy(base_url, environment):
            source, proxy = found
        else:
            return None
        if proxy.strip().lower() in ("", "false", "none"):  # from a variable
            return None
        url = checked_proxy(proxy)
    except ValueError as error:
        hint = "" if source == "proxy" else "; `proxy: false` connects without it"
        raise ConfigError(f"provider {name!r}: {source}: {error}{hint}") from None
    if password := urlsplit(url).password:
        secrets.update((password, unquote(password)))
    return url


def _certificates(name: str, file: str) -> str:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"provider {name!r}: ca_file {file} cannot be read: {error.strerror}") from None
    try:
        pem = content.decode() if len(content) <= _MAX_CA_BYTES else ""
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):  # ValueError: not UTF-8, or empty
        raise ConfigError(f"provider {name!r}: ca_file {file} holds no PEM certificates of at most 1 MiB") from None
    return pem
