"""How a listener learns which service a local connection is for.

A front gets each accepted connection. It may read from it until it can name a service. Then it hands over the socket,
the service, and the bytes that it has read and that belong to the stream.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

__all__ = ["Front", "HandOver", "one_service"]

#: Takes a connected, non-blocking socket, the full name of its service, and the first bytes of its stream.
HandOver = Callable[[socket.socket, str, bytes], None]
#: Gets a connected, non-blocking socket, which it hands over or closes.
Front = Callable[[socket.socket, HandOver], None]


def one_service(service: str) -> Front:
    """The simplest front: each connection is for ``service``, and nothing is read."""

    def front(sock: socket.socket, hand_over: HandOver) -> None:
        hand_over(sock, service, b"")

    return front
