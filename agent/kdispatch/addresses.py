"""Text forms of local addresses, and how several are tried."""

from __future__ import annotations

import socket
from typing import Any, Final

__all__ = ["EYEBALLS", "bare", "place", "written"]

#: Seconds before the next address of a name is tried in parallel (RFC 8305, 5). Windows takes two seconds to refuse.
EYEBALLS: Final = 0.25


def bare(address: str) -> str:
    """An address without the brackets that belong before a port: ``[::1]`` becomes ``::1``."""
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def place(address: str, port: int) -> str:
    """Address and port joined, with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def written(address: tuple[Any, ...]) -> str:
    """The host of a socket's address. A link-local address includes its interface, as it is unreachable without it."""
    host, _, *more = address
    scope = more[1] if len(more) > 1 else 0
    if not scope or "%" in host:
        return str(host)
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:  # the interface has just disappeared
        return f"{host}%{scope}"
