"""Connections to the local service: at once where the kernel has one at once, which on loopback is nearly always."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import Any

from aiohappyeyeballs import start_connection

from kdispatch.operating_system import HERE
from kdispatch_protocol.aio.descriptors import is_reserved

__all__ = ["LocalDial", "Target"]


class Target:
    """Where to connect to."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self._family, self._place = _numeric(address, port)

    def begin(self) -> LocalDial:
        """Begin to connect; raises ``OSError`` when that failed already."""
        if self._place is None:
            return LocalDial(self, None)
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        if is_reserved(sock.fileno()):
            sock.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            sock.settimeout(0)
            with contextlib.suppress(BlockingIOError, InterruptedError):
                sock.connect(self._place)
            # A listener of this machine has completed the handshake by now, or its kernel has refused it: there is
            # no need for a task, nor for the loop to say so in a later turn.
            return LocalDial(self, sock, there=_is_connected(sock, self._place))
        except BaseException:
            sock.close()
            raise


class LocalDial:
    """One connection under way; ``there``: it is done. Whoever has it closes ``sock``, or hands it on."""

    def __init__(self, target: Target, sock: socket.socket | None, *, there: bool = False) -> None:
        self._target = target
        self.sock = sock
        self.there = there

    async def finish(self) -> socket.socket:
        """Wait for the connection; raises ``OSError``. The caller bounds the time."""
        loop = asyncio.get_running_loop()
        target = self._target
        if self.sock is None:
            infos = await loop.getaddrinfo(target.address, target.port, type=socket.SOCK_STREAM)
            self.sock = await start_connection(infos)
        elif not self.there:
            while not _is_connected(self.sock, (target.address, target.port)):
                await _writable(loop, self.sock)
        self.there = True
        return self.sock

    def close(self) -> None:
        """Give it up."""
        if self.sock is not None:
            self.sock.close()


def _is_connected(sock: socket.socket, place: Any) -> bool:
    """Whether a connection that was begun is there; raises ``OSError`` when it failed."""
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
    else:
        return True
    status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if status:
        raise OSError(status, f"Connect call failed {place}")
    return False


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    future: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        loop.remove_writer(sock)


def _numeric(address: str, port: int) -> tuple[int, Any]:
    """The family and the socket address of ``address`` if it is one of figures, and the loop can wait for sockets."""
    if HERE.waits_for_sockets:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                socket.inet_pton(family, address)
            except OSError:
                continue
            return family, (address, port)
    return socket.AF_UNSPEC, None
