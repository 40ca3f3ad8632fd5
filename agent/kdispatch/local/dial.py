"""Connections to the local service. On loopback the kernel nearly always connects at once, and so does this."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections.abc import Sequence
from typing import Any, Final

from aiohappyeyeballs import AddrInfoType, start_connection

from kdispatch.addresses import EYEBALLS
from kdispatch.local.port import LOCALHOST
from kdispatch.machine.operating_system import HERE
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.process.descriptors import is_reserved
from kdispatch_protocol.process.system_errors import words_of

__all__ = ["LocalDial", "Target", "checked_address"]


#: A name or an IPv4 address, and a port.
_WITH_PORT: Final = re.compile(r"(?:[^:]+|\[.*\]):\d+")


def checked_address(address: str) -> str:
    """Check a local address from the user; ``bad_request`` if it can't be one. To the system "" means all addresses."""
    if not address.strip() or not address.isprintable():
        raise KdispatchError("bad_request", f"The local address is {address!r}: write a name or an address.")
    if _WITH_PORT.fullmatch(address):
        raise SetupError(
            "bad_request", f"The local address {address} has a port.", hint="Give the port by --port, and only once."
        )
    return address


class Target:
    """The address and port to connect to."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        #: Families and socket addresses, if they need no look-up.
        self.places = _numeric(address, port)

    def begin(self) -> LocalDial:
        """Start to connect. Raises ``OSError`` if that failed at once: the first error of several addresses."""
        if not self.places or not HERE.waits_for_sockets:
            return LocalDial(self, None)
        failed: OSError | None = None
        for family, place in self.places:
            try:
                return self._begin(family, place)
            except OSError as error:
                failed = failed or error
        assert failed is not None, "there is a place, and it failed"
        raise failed

    def _begin(self, family: int, place: Any) -> LocalDial:
        sock = socket.socket(family, socket.SOCK_STREAM)
        if is_reserved(sock.fileno()):
            sock.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            sock.settimeout(0)
            with contextlib.suppress(BlockingIOError, InterruptedError):
                sock.connect(place)
            # A listener on this machine has completed the handshake by now, or the kernel has refused it. So this needs
            # neither a task nor a later turn of the loop.
            return LocalDial(self, sock, there=_is_connected(sock))
        except BaseException:
            sock.close()
            raise


class LocalDial:
    """A connection being made; ``there`` says that it is complete. Its holder closes ``sock`` or passes it on."""

    def __init__(self, target: Target, sock: socket.socket | None, *, there: bool = False) -> None:
        self._target = target
        self.sock = sock
        self.there = there

    async def finish(self) -> socket.socket:
        """Wait for the connection; raises ``OSError``. The caller bounds the time."""
        loop = asyncio.get_running_loop()
        target = self._target
        if self.sock is None:
            infos: Sequence[AddrInfoType] = [
                (family, socket.SOCK_STREAM, 0, "", place) for family, place in target.places
            ] or await loop.getaddrinfo(target.address, target.port, type=socket.SOCK_STREAM)
            self.sock = await start_connection(infos, happy_eyeballs_delay=EYEBALLS)
        elif not self.there:
            while not _is_connected(self.sock):
                await _writable(loop, self.sock)
        self.there = True
        return self.sock

    def close(self) -> None:
        """Give up the connection."""
        if self.sock is not None:
            self.sock.close()


def _is_connected(sock: socket.socket) -> bool:
    """Whether the connection is complete; raises ``OSError`` if it failed."""
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
    else:
        return True
    if _has_words(sock):
        return True
    status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if status:
        raise OSError(status, words_of(status))
    return False


def _has_words(sock: socket.socket) -> bool:
    """Whether the service has sent data and then reset the connection: the data can still be read.

    Raises the connection's error, if the system reports it here, as the system reports an error only once.
    """
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ENOTCONN:  # other systems report this while connecting, Linux does not
            return False
        raise


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    future: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        loop.remove_writer(sock)


def _numeric(address: str, port: int) -> list[tuple[int, Any]]:
    """Families and socket addresses of ``address``, if it needs no look-up."""
    places: list[tuple[int, Any]] = []
    for one in LOCALHOST if address == "localhost" else (address,):
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                socket.inet_pton(family, one)
                # Windows' event loop takes a pair for an IPv4 address.
                places.append((family, (one, port) if family == socket.AF_INET else (one, port, 0, 0)))
    return places
