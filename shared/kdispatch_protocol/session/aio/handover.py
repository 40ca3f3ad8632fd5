"""Handover of connected sockets to a transport, which alone closes their descriptors."""

from __future__ import annotations

import asyncio
import socket
import ssl as tls
from collections.abc import Callable
from typing import TypeVar

__all__ = ["connection_over", "disown"]

_P = TypeVar("_P", bound=asyncio.BaseProtocol)


def disown(sock: socket.socket) -> None:
    """Detach ``sock`` on uvloop, because its transport owns the descriptor now: the object must never close it again.

    ``create_connection`` of uvloop 0.23.0 takes the descriptor at once, but ties the object to it only after
    ``connection_made``. If the connection ends before that (its first write failed), the descriptor is closed already.
    The object would close the number again, which may be another connection's by then. asyncio's transports close the
    object.
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
    """Make a client's connection over a connected socket. Parameters and errors are those of ``create_connection``."""
    try:
        return await asyncio.get_running_loop().create_connection(
            make, sock=sock, ssl=ssl, server_hostname=server_hostname, ssl_handshake_timeout=ssl_handshake_timeout
        )
    finally:
        disown(sock)
