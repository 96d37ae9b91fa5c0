"""Checks the addresses that callbacks connect to.

The sender of a batch chooses the callback URL, and the server runs inside a cluster: without a check, a callback could
reach the cluster's metadata service, its databases, and Ray itself.  A URL can write an address in many ways, and a
name can resolve to another address at the next look-up.  So the check inspects neither: it creates the socket of each
connection, at the moment of connecting, when the numeric address is known.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from batchray.errors import ConfigError

AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""One entry of `socket.getaddrinfo`: family, type, protocol, canonical name, socket address."""

# Sources: IANA's registries of special-purpose addresses, IPv4 and IPv6.  Addresses for tunnels and for protocols of
# the network itself are included: no receiver of callbacks has one.
_SPECIAL_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this host; Linux takes 0.0.0.0 for loopback
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carriers' NAT; metadata at 100.100.100.200 (Alibaba)
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's host agent; a public address by all registries
            "169.254.0.0/16",  # link-local; metadata at 169.254.169.254 (most clouds)
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments; metadata at 192.0.0.192 (Oracle)
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112: answers for private names, from the nearest network
            "192.52.193.0/24",  # multicast relays (AMT)
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
# All IPv6 addresses allocated for use on the Internet.  Loopback, mapped, private (metadata at fd00:ec2::254, AWS),
# link-local and multicast addresses and 64:ff9b:1::/48 are outside.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: holds an IPv4 address
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
# In an IPv6-only network, DNS64 gives an IPv4-only receiver an address in this range, which ends with its IPv4 address.
_NAT64 = IPv6Network("64:ff9b::/96")


NO_ADDRESS = "the receiver has no public address, and none in an allowed network"
"""Why a callback cannot be sent to a name that does not exist, or to an address that is not allowed."""


class BlockedAddressError(OSError):
    """A connection to this address is not allowed.  An OSError, as aiohttp expects; never leaves this package.

    The sender of the batch reads the message, and must not learn which names the cluster has, nor how they resolve.  So
    it does not contain the address, and is the same for a name that does not exist.
    """

    def __init__(self) -> None:
        super().__init__(NO_ADDRESS)


class AddressGuard:
    """Creates the sockets of callbacks, only for public addresses and those in `allowed_networks` (CIDRs).

    `make_socket` takes family, type and protocol.  Raises ConfigError for an invalid network.
    """

    def __init__(
        self,
        allowed_networks: Iterable[str] = (),
        make_socket: Callable[[int, int, int], socket.socket] = socket.socket,
    ) -> None:
        self._allowed = tuple(map(_network, allowed_networks))
        self._make_socket = make_socket

    def allows(self, host: str) -> bool:
        """Return whether `host`, a numeric address, may be connected to."""
        try:
            address = ip_address(host)
        except ValueError:  # a name or an unusual spelling: connecting would resolve it again, without the check
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # the system connects to the mapped address
        return is_public(address) or any(address in network for network in self._allowed)

    def open_socket(self, addr_info: AddrInfo) -> socket.socket:
        """Create the unconnected socket of a connection: aiohttp's `socket_factory`.  Raises BlockedAddressError."""
        family, kind, protocol, _, address = addr_info
        if family not in (socket.AF_INET, socket.AF_INET6) or not self.allows(address[0]):
            raise BlockedAddressError
        return self._make_socket(family, kind, protocol)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address belongs to the public Internet.

    `address.is_global` is not used: it is true for NAT64 and 6to4 with any content, for multicast and for some metadata
    services, and it changes between patch releases of Python.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if address in _NAT64:
        return is_public(IPv4Address(address.packed[-4:]))
    is_special = address.scope_id is not None or any(address in network for network in _SPECIAL_V6)
    return address in _GLOBAL_UNICAST and not is_special


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigError(f"allowed network {text!r}: {error}; write it as in 10.0.0.0/8") from None
