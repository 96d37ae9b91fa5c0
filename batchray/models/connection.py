"""The way to one provider: its address with the query, the headers, a proxy and a certificate authority."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypedDict
from urllib.parse import parse_qsl, urlencode, urlsplit

import aiohttp
from yarl import URL

from batchray.errors import ConfigError
from batchray.models.retry import CallTimeouts
from batchray.schema.secret_names import is_secret_name

Auth = Literal["bearer", "x-api-key", "api-key"]
"""The header that carries the key: `Authorization: Bearer`, `x-api-key` (Anthropic) or `api-key` (Azure)."""

# The paths of the protocols' calls.  An address that ends in one is used as it is.
_CALL_PATHS = ("/chat/completions", "/responses", "/messages")
_SHORT_SECRET_CHARS = 8  # a shorter value may be a part of ordinary words, so that it is masked only as a whole word
_AUTH_SCHEMES = frozenset({"basic", "bearer", "token"})  # words before the key in a header, and not secret


class ConnectionOptions(TypedDict, total=False):
    """How a provider is reached, besides its address and its headers.

    `query` is added to that of the address.  `proxy` is a URL, with user and password if it needs them.  `ca_pem` holds
    the certificates that are trusted instead of the system's.  `secrets` are masked in errors and logs.
    """

    auth: Auth | None
    query: Mapping[str, str]
    proxy: str | None
    ca_pem: str | None
    secrets: Sequence[str]


class Connection:
    """The way to one provider.  Raises ConfigError for an address or headers that HTTP cannot carry.

    `name` is the provider's in errors.  `headers` are sent with each call; values whose name says that they are secret
    are masked, and so are `secrets`.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        headers: Mapping[str, str],
        *,
        query: Mapping[str, str] | None = None,
        proxy: str | None = None,
        ca_pem: str | None = None,
        secrets: Iterable[str] = (),
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"provider {name!r}: base_url must start with http:// or https:// and name a host")
        if parts.username or parts.password:
            raise ConfigError(f"provider {name!r}: give the key in api_key_env, not in base_url")
        self.address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._query = _joined_query(parts.query, query or {})
        self.headers = _checked_headers(headers, name)
        self._proxy, self._ca_pem = proxy, ca_pem
        hidden = [*secrets, *(value for header, value in headers.items() if is_secret_name(header))]
        hidden += [value for key, value in parse_qsl(self._query) if is_secret_name(key)]
        self._secrets = _secret_pattern(hidden)
        self._urls: dict[str, URL] = {}

    def url(self, path: str) -> URL:
        """Return the URL of a call.  `path` begins with the version if the protocol's address leaves it out."""
        if path not in self._urls:
            query = f"?{self._query}" if self._query else ""
            self._urls[path] = URL(_joined(self.address, path) + query)
        return self._urls[path]

    def open(self, timeouts: CallTimeouts) -> aiohttp.ClientSession:
        """Return a session for use on the running event loop.

        The number of its connections is not limited, because the window already limits the calls.  It reads neither
        the environment nor a netrc file, whose passwords aiohttp would send to the provider.
        """
        trusted = ssl.create_default_context(cadata=self._ca_pem) if self._ca_pem else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, ssl=trusted),
            timeout=aiohttp.ClientTimeout(connect=timeouts.connect_s, sock_read=timeouts.idle_s),
            headers=self.headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=self._proxy,
        )

    def masked(self, text: str) -> str:
        """Return a text without the provider's secrets, complete or partly masked."""
        return self._secrets.sub("***", text) if self._secrets else text


def auth_header(auth: Auth, key: str) -> dict[str, str]:
    """Return the header that carries a key; none for an empty key."""
    if not key:
        return {}
    return {"Authorization": f"Bearer {key}"} if auth == "bearer" else {auth: key}


def merged_headers(*layers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of all layers; a later layer wins, whatever the case of the name."""
    names: dict[str, tuple[str, str]] = {}
    for layer in layers:
        names.update((name.lower(), (name, value)) for name, value in layer.items())
    return dict(names.values())


def _joined(address: str, path: str) -> str:
    """Return the URL of `path` under an address, which may end in the version or in the whole path of a call."""
    unversioned = path.removeprefix("/v1")
    for known in _CALL_PATHS:
        if address.endswith(known):
            return address if known == unversioned else address.removesuffix(known) + unversioned
    return address + (unversioned if address.endswith("/v1") else path)


def _joined_query(given: str, added: Mapping[str, str]) -> str:
    """Return the query of an address with further parameters, which replace those of the same name."""
    if not added:
        return given
    kept = [(name, value) for name, value in parse_qsl(given, keep_blank_values=True) if name not in added]
    return urlencode([*kept, *added.items()])


def _checked_headers(headers: Mapping[str, str], name: str) -> dict[str, str]:
    for header, value in headers.items():
        if not value.isprintable():
            raise ConfigError(f"provider {name!r}: header {header!r} contains a character that HTTP cannot send")
    return dict(headers)


def _secret_pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    words = {word for secret in secrets for word in secret.split() if word.lower() not in _AUTH_SCHEMES}
    patterns = []
    for secret in sorted(words, key=len, reverse=True):
        is_short = len(secret) < _SHORT_SECRET_CHARS
        patterns.append(rf"(?<!\w){re.escape(secret)}(?!\w)" if is_short else re.escape(secret))
        if len(secret) >= 16:  # providers mask a key and show its first and last characters
            patterns.append(re.escape(secret[:6]) + r"[^\s\"',;]*")
    return re.compile("|".join(patterns)) if patterns else None
