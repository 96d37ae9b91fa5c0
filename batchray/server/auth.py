"""Authentication: the user of an API key, or one default user if the server has no keys and listens on loopback."""

from __future__ import annotations

import ipaddress
import logging
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from batchray.config import ServerSettings
from batchray.errors import ConfigError
from batchray.server.errors import HttpError, unavailable
from batchray.server.keys import KeyFile
from batchray.server.routing import Route, route_of
from batchray.store import DEFAULT_USER

logger = logging.getLogger(__name__)

_USER = web.RequestKey("user", str)


def user_of(request: web.Request) -> str:
    """Return the id of the user who sent a request."""
    return request[_USER]


def authentication(keys: KeyFile, *, needs_key: bool) -> Middleware:
    """Return the middleware that identifies the user of a request, and refuses a request without a valid key.

    If `needs_key` is False, keys are required as soon as the first one exists.
    """

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        if route is not None and not route.is_open:
            try:  # read for each request: a key that was added after the start takes effect at once
                has_keys = needs_key or bool(keys.all())
                request[_USER] = _user_of_key(request, route, keys) if has_keys else _default_user(request)
            except ConfigError as error:
                logger.error("no API key can be checked: %s", error)
                raise unavailable(5, "API keys cannot be checked at the moment") from None
        return await handler(request)

    return authenticate


def check_exposure(settings: ServerSettings, keys: KeyFile) -> bool:
    """Return whether clients need a key.  Raises ConfigError for a server without keys on a public address."""
    if keys.all():
        return True
    if not _is_loopback(settings.host):
        raise ConfigError(
            f"without API keys the server listens on loopback only, not on {settings.host!r}; "
            "create a key with: batchray keys add NAME"
        )
    return False


def _user_of_key(request: web.Request, route: Route, keys: KeyFile) -> str:
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    key = keys.find(text.strip()) if scheme.lower() == "bearer" else None
    if key is None:
        raise HttpError(401, "Unauthorized", {"WWW-Authenticate": "Bearer"})
    if route.is_for_operator and not key.is_operator:
        raise HttpError(403, "this is about all users; it needs an operator's key: batchray keys add NAME --operator")
    return key.user_id


def _default_user(request: web.Request) -> str:
    # A web page in a local browser could reach this server under a host name of its own (DNS rebinding).
    if not _is_loopback(_host_of(request)):
        raise HttpError(421, "without API keys this server answers only to a loopback name")
    return DEFAULT_USER


def _host_of(request: web.Request) -> str:
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
