"""Who asks: an API key's user, or, on a server without keys, everybody on this machine as one user."""

from __future__ import annotations

import ipaddress
import logging
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from batchray.config import ServerSettings
from batchray.errors import ConfigError
from batchray.server.errors import HttpError, later
from batchray.server.keys import KeyFile
from batchray.server.routing import route_of
from batchray.store import DEFAULT_USER

logger = logging.getLogger(__name__)

_USER = web.RequestKey("user", str)


def user_of(request: web.Request) -> str:
    """Return the id of the user who asks."""
    return request[_USER]


def authentication(keys: KeyFile, *, needs_key: bool) -> Middleware:
    """Return the middleware that finds out who asks, and refuses those who may not.

    Without `needs_key` a key is needed as soon as there is one.
    """

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        if route is not None and not route.is_open:
            try:  # the first key of a server that started without any counts from now on
                request[_USER] = _user(request, keys) if needs_key or keys.all() else _anybody(request)
            except ConfigError as error:
                logger.error("no API key can be checked: %s", error)
                raise later(5, "API keys cannot be checked at the moment") from None
        return await handler(request)

    return authenticate


def check_exposure(settings: ServerSettings, keys: KeyFile) -> bool:
    """Tell whether clients need a key.  Raises ConfigError for a server that all the world could use without one."""
    if keys.all():
        return True
    if not _is_loopback(settings.host):
        raise ConfigError(
            f"without API keys the server listens on loopback only, not on {settings.host!r}; "
            "make one with: batchray keys add NAME"
        )
    return False


def _user(request: web.Request, keys: KeyFile) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    user_id = keys.user_of(key.strip()) if scheme.lower() == "bearer" else None
    if user_id is None:
        raise HttpError(401, "Unauthorized", {"WWW-Authenticate": "Bearer"})
    return user_id


def _anybody(request: web.Request) -> str:
    # A page in a browser on this machine could name us by a host of its own (DNS rebinding).
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
