"""The source of a request: the address of its connection, or the address that a trusted proxy names.

Every proxy appends the address of its client to the list that it received (``X-Forwarded-For``). So only the right end
of the list is trusted, as far as the operator's own proxies have written it.
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

#: Addresses of trusted proxies.
Networks = tuple[IPv4Network | IPv6Network, ...]

#: The loopback addresses.
LOOPBACK: Final[Networks] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

#: Headers, in lower case, that show that a server in front passed the request on for another client. Their content is
#: not trusted: each only shows that the request is not from the program that connects.
_PASSED_ON: Final = frozenset({
    "cf-connecting-ip", "client-ip", "fastly-client-ip", "forwarded", "forwarded-for", "true-client-ip", "via",
    "x-client-ip", "x-cluster-client-ip", "x-envoy-external-address", "x-original-forwarded-for", "x-real-ip",
})  # fmt: skip
_PASSED_ON_PREFIX: Final = "x-forwarded"

_GROUP: Final = 64  # bits of an IPv6 address that belong to one customer, who chooses the rest
_HOPS: Final = 32  # trusted proxies in a row, at most; a sender may write thousands


def networks(text: str) -> Networks:
    """Addresses and networks, separated by commas; raises ``bad_request``."""
    try:
        return tuple(ipaddress.ip_network(item.strip()) for item in text.split(",") if item.strip())
    except ValueError as error:
        raise KdispatchError("bad_request", f"A trusted proxy is an address or a network: {error}.") from error


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """The address, perhaps with a port or brackets. IPv4 in IPv6 form counts as IPv4. ``None`` if invalid."""
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
    """Whether the proxy at this address is trusted."""
    return any(address in network for network in trusted)


def forwarded_source(peer: str, lists: Iterable[str], trusted: Networks) -> str:
    """The rightmost address that is not a trusted proxy's; ``peer`` if that is not trusted itself.

    ``lists`` are the ``X-Forwarded-For`` headers, in their order. An entry that is not an address ends the search: then
    the last proxy found is the result.
    """
    source = address_of(peer)
    if source is None:
        return peer
    hops = [item for one in lists for item in one.rsplit(",", _HOPS)][-_HOPS:]
    while hops and is_trusted(source, trusted) and (hop := address_of(hops.pop())) is not None:
        source = hop
    return str(source)


def is_passed_on(headers: Iterable[str]) -> bool:
    """Whether these headers show that the request was passed on for another client."""
    return any(name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIX) for name in map(str.lower, headers))


def group_of(source: str) -> str:
    """The group that counts as one source: an IPv4 address, or 64 bits of an IPv6 address."""
    address = address_of(source)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address) >> (128 - _GROUP) << (128 - _GROUP), _GROUP)))
    return source if address is None else str(address)
