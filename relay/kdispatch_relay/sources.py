"""From where somebody comes: by the address of a connection, or by what a proxy that is trusted says of it.

Every proxy writes the address of whoever connects to it behind those that it was sent (``X-Forwarded-For``). So only
the right end of the list is believed, and of that only as far as proxies of one's own have written it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from kdispatch_protocol.errors import KdispatchError

__all__ = [
    "LOOPBACK",
    "Networks",
    "address_of",
    "forwarded_source",
    "group_of",
    "is_passed_on",
    "is_trusted",
    "networks",
]

#: Addresses of proxies that are trusted.
Networks = tuple[IPv4Network | IPv6Network, ...]

#: This machine, to itself.
LOOPBACK: Final[Networks] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

#: Headers, in lower case, by which something between says that the request is another's. None of these is believed:
#: each only says that the request is not of whoever connects.
_PASSED_ON: Final = frozenset({
    "cf-connecting-ip", "client-ip", "fastly-client-ip", "forwarded", "forwarded-for", "true-client-ip", "via",
    "x-client-ip", "x-cluster-client-ip", "x-envoy-external-address", "x-original-forwarded-for", "x-real-ip",
})  # fmt: skip
_PASSED_ON_PREFIX: Final = "x-forwarded"

_GROUP: Final = 64  # bits of an IPv6 address that are one customer's: the rest is his to choose
_HOPS: Final = 32  # proxies that are believed one behind the other; the sender may write thousands


def networks(text: str) -> Networks:
    """Addresses and networks, separated by commas; raises ``bad_request``."""
    try:
        return tuple(ipaddress.ip_network(item.strip()) for item in text.split(",") if item.strip())
    except ValueError as error:
        raise KdispatchError("bad_request", f"A trusted proxy is an address or a network: {error}.") from error


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """The address, which may have a port behind it or be in brackets; an IPv4 one in IPv6's form is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def is_trusted(address: IPv4Address | IPv6Address, trusted: Networks) -> bool:
    """Whether a proxy at this address is believed."""
    return any(address in network for network in trusted)


def forwarded_source(peer: str, lists: Iterable[str], trusted: Networks) -> str:
    """Whoever the rightmost address that is no trusted proxy's belongs to; ``peer`` where that is not trusted itself.

    ``lists`` are the ``X-Forwarded-For`` headers, in their order. What is no address ends the search: the proxy that
    was met last is then all that is known.
    """
    source = address_of(peer)
    if source is None:
        return peer
    hops = [item for one in lists for item in one.rsplit(",", _HOPS)][-_HOPS:]
    while hops and is_trusted(source, trusted) and (hop := address_of(hops.pop())) is not None:
        source = hop
    return str(source)


def is_passed_on(headers: Iterable[str]) -> bool:
    """Whether a request with these headers is another's than whoever connects."""
    return any(name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIX) for name in map(str.lower, headers))


def group_of(source: str) -> str:
    """What counts as one source: an IPv4 address, or 64 bits of an IPv6 one."""
    address = address_of(source)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address) >> (128 - _GROUP) << (128 - _GROUP), _GROUP)))
    return source if address is None else str(address)
