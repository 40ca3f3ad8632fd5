"""Connected sockets that go to a transport of the event loop, which alone closes their descriptors."""

from __future__ import annotations

import asyncio
import socket
import ssl as tls
from collections.abc import Callable
from typing import TypeVar

__all__ = ["connection_over", "disown"]

_P = TypeVar("_P", bound=asyncio.BaseProtocol)


def disown(sock: socket.socket) -> None:
    """A transport has the descriptor of ``sock``, whatever came of it: on uvloop the object never closes it again.

    ``create_connection`` of uvloop 0.23.0 takes the descriptor at once, and ties the object to it behind
    ``connection_made``. A connection that ends before (its first write failed) has closed the descriptor by then. The
    object would close the number once more, which may be another connection's. asyncio's transports close the object.
    """
    if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        sock.detach()


async def connection_over(
    make: Callable[[], _P],
    sock: socket.socket,
    *,
    ssl: tls.SSLContext | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
) -> tuple[asyncio.Transport, _P]:
    """A client's connection over a connected socket; the parameters and errors are ``create_connection``'s."""
    try:
        return await asyncio.get_running_loop().create_connection(
            make, sock=sock, ssl=ssl, server_hostname=server_hostname, ssl_handshake_timeout=ssl_handshake_timeout
        )
    finally:
        disown(sock)
