"""Which proxy the environment wants for an address: HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

As curl and Python's requests read them: lower case wins over upper case, and loopback is an address like any other.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit


def environment_proxy(base_url: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the variable and the proxy that it names for this address; None for a direct connection."""
    parts = urlsplit(base_url)
    variable = f"{parts.scheme}_proxy"
    if variable not in environment:
        variable = variable.upper()
    proxy = environment.get(variable, "").strip()
    excluded = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    if not proxy or is_excluded(parts.hostname or "", parts.port, excluded):
        return None
    return variable, proxy


def checked_proxy(proxy: str) -> str:
    """Return the URL of a proxy, http:// if it has no scheme.  Raises ValueError, without the URL, if it is none."""
    url = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is not a number
        is_usable = False
    if not is_usable:
        raise ValueError("a proxy must be http://host:port or https://host:port; other kinds (SOCKS) cannot be used")
    return url


def is_excluded(host: str, port: int | None, excluded: str) -> bool:
    """Whether NO_PROXY lists a host: by name, by domain, with a port, as an address or a network, or with `*`."""
    return any(_matches(entry, host.lower(), port) for entry in re.split(r"[,\s]+", excluded.lower()) if entry)


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # the host or the entry is a name, or the entry has a port
        pass
    if with_port := re.fullmatch(r"(.+):(\d+)", entry):
        if int(with_port[2]) != port:
            return False
        entry = with_port[1].strip("[]")
    domain = entry.removeprefix("*").lstrip(".")
    return host == domain or host.endswith(f".{domain}")
