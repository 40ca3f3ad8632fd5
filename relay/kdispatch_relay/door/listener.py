"""The relay's listening sockets, and how a relay leaves its port without losing a connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any, Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.session.aio.sockets import cannot_listen
from kdispatch_relay.door import sockets, steering
from kdispatch_relay.door.arrivals import Arrival
from kdispatch_relay.door.certificates import Certificates
from kdispatch_relay.door.http_connection import HttpConnections
from kdispatch_relay.door.neighbour import ask, unverified
from kdispatch_relay.door.sockets import reachable, way_to, written
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.settings import RelaySettings

__all__ = ["Listener", "Port"]

_BACKLOG: Final = 1024  # connections that the kernel queues: after a restart a whole fleet arrives at once
_LOOK: Final = 0.010  # seconds between two looks at what the kernel has accepted
_ARRIVAL: Final = 0.030  # seconds for a connection from this machine to itself: it needs less than 1 ms
_PROBES: Final = 4  # if the kernel chooses by a hash, one of these comes here
_DOUBTS: Final = 20  # and one of these goes elsewhere, except in one case of a million
_AT_ONCE: Final = 100  # connections accepted in one turn of the event loop
_REST: Final = 0.05  # seconds without accepting after there was no descriptor for a connection
_PATIENCE: Final = 1.0  # seconds before a waiting connection may be closed to make room: honest ones need less
_TELL_EVERY: Final = 60.0  # seconds between two warnings about that
_ROOM: Final = 32  # connections closed at once to make room
# When a relay leaves its port, handshakes under way need a round trip, or a second if a packet is lost.
_HANDSHAKES: Final = 1.0
_QUIET: Final = 0.5  # seconds without a connection after one that still came
_HANDSHAKES_MOST: Final = 5.0

_log = logging.getLogger("kdispatch.relay")

#: Errors that mean that the system has no room for one more connection.
_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: An accepted connection, and the address that it comes from.
_Accepted = tuple[socket.socket, Any]


class Port(Enum):
    """What happens to a relay's port when the relay ends."""

    TAKEN = "taken"  # another relay listens, and gets all new connections
    KEPT = "kept"  # the program that handed the socket over still has it
    CLOSED = "closed"


class Listener:
    """The listening sockets of one relay, and the connections that arrive there."""

    def __init__(self, found: list[socket.socket], tls: Certificates | None, host: str, *, beside: bool) -> None:
        self._sockets = found
        self._tls = tls
        self._ours = bool(host)  # otherwise another program's, which keeps them open
        own_host, self.port = found[0].getsockname()[:2]
        self.where = written((host or own_host, self.port))  # as users know it
        self._beside = beside
        self._leaving = False
        self._connections: HttpConnections | None = None
        self._accepting: set[asyncio.Task[None]] = set()  # only on event loops that cannot watch sockets
        self._taking: set[asyncio.Task[None]] = set()
        self._others = False  # another relay gets new connections
        self._watched = True  # new connections are accepted at once
        self._tell_again = 0.0  # when the next warning about missing room is due

    @classmethod
    async def bound(cls, settings: RelaySettings, tls: Certificates | None) -> Listener:
        """Sockets that were handed over, otherwise those of the settings.

        Raises ``plaintext_refused``, the error of :func:`cannot_listen`, or ``bad_request`` for unusable sockets.
        """
        handed = sockets.handed_over(os.environ)
        if handed:
            try:
                for sock in handed:
                    settings.check_address(str(sock.getsockname()[0]), written(sock.getsockname()))
            except KdispatchError:
                sockets.close(handed)
                raise
            return cls(handed, tls, "", beside=False)
        if settings.reuse_port and not sockets.SHARING:
            raise KdispatchError("bad_request", "Only Linux lets a relay listen beside another with --reuse-port.")
        try:
            found, beside = await _bound(settings, tls)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                text = f"Another program listens on {settings.listen}."
                if sockets.SHARING and not settings.reuse_port:
                    text += " To take over from a relay there, use --reuse-port."
                raise KdispatchError("port_in_use", text) from error
            raise cannot_listen(settings.listen, error) from error
        return cls(found, tls, settings.address[0], beside=beside)

    async def start(self, connections: HttpConnections) -> None:
        """Listen. If another relay listens on the port, all new connections come here from now on."""
        self._connections = connections
        for sock in self._sockets:
            if self._ours:
                sock.listen(_BACKLOG)
            if self._beside:
                await self._steer(sock, here=True)
            self._watch(sock)

    async def turn_away(self) -> Port:
        """Direct new connections to another relay, if there is one.

        Connections that still come here wait for :meth:`close`.
        """
        self._leaving = True
        self._accept_no_more()
        if not self._ours:
            return Port.KEPT
        self._others = all(await asyncio.gather(*map(self._turned_away, self._sockets)))
        return Port.TAKEN if self._others else Port.CLOSED

    async def close(self) -> None:
        """Stop listening; after :meth:`turn_away`, first take what the kernel has accepted. May be called again."""
        leaving, self._leaving = self._leaving, False
        try:
            if leaving and self._ours:
                await asyncio.gather(*map(self._leave, self._sockets))
        finally:
            self._accept_no_more()
            sockets.close(self._sockets)
        if self._taking:
            _, late = await asyncio.wait(self._taking, timeout=_HANDSHAKES)
            for task in late:
                task.cancel()

    # --- inner --------------------------------------------------------------------------------

    def _watch(self, sock: socket.socket) -> None:
        """Accept connections of a listening socket from now on.

        The event loop's own server is not used: it starts TLS before the relay has counted the connection.
        """
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(sock, self._ready, sock)
        except NotImplementedError:  # on Windows
            self._accepting.add(loop.create_task(self._accept(sock), name="listener"))

    def _accept_no_more(self) -> None:
        loop = asyncio.get_running_loop()
        self._watched = False
        for task in self._accepting:
            task.cancel()
        if not self._accepting:
            for sock in self._sockets:
                if sock.fileno() >= 0:
                    loop.remove_reader(sock)

    def _ready(self, sock: socket.socket) -> None:
        try:
            for accepted, peer in islice(_accepted(sock, full=True), _AT_ONCE):
                self._take(accepted, peer)
        except OSError as error:
            # While a connection waits, the loop would call this again at once.
            loop = asyncio.get_running_loop()
            if loop.time() >= self._tell_again:
                self._tell_again = loop.time() + _TELL_EVERY
                _log.warning(
                    "New connections wait: %s. A higher limit (ulimit -n) allows more.", error.strerror or error
                )
            loop.remove_reader(sock)
            loop.call_later(_REST, self._ready_again, sock)
            self._make_room()

    def _make_room(self) -> None:
        assert self._connections is not None
        for _ in range(_ROOM):
            if not self._connections.arrivals.make_room(_PATIENCE):
                break

    def _ready_again(self, sock: socket.socket) -> None:
        if self._watched:
            self._watch(sock)

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(sock)
            except OSError:
                self._make_room()
                await asyncio.sleep(_REST)
                continue
            self._take(accepted, peer)

    async def _leave(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        ends = began + (_HANDSHAKES if self._others else 0.0)
        while loop.time() < min(ends, began + _HANDSHAKES_MOST):
            await asyncio.sleep(_LOOK)
            if self._take_all(sock):
                if not await self._turned_away(sock):
                    break
                ends = max(ends, loop.time() + _QUIET)
        self._take_all(sock)

    async def _turned_away(self, sock: socket.socket) -> bool:
        """Whether another socket gets new connections; tells the kernel so if necessary."""
        if not sockets.SHARING:
            return False
        for _ in range(_PROBES):
            if await self._comes_here(sock):
                break
        else:
            return True
        if await self._steer(sock, here=False):
            return True
        # There is no other socket, or the kernel can't be told: then it gives some to each.
        for _ in range(_DOUBTS):
            if not await self._comes_here(sock):
                return True
        return False

    async def _steer(self, sock: socket.socket, *, here: bool) -> bool:
        """Let this socket get all new connections, or another one; returns whether that worked.

        Tries the numbers from 0 up: each number below the group's size is certainly one of its sockets.
        """
        for number in range(steering.MOST):
            if not steering.send_all_to(sock, number):
                return False
            if await self._comes_here(sock) is here:
                return True
        return False

    async def _comes_here(self, sock: socket.socket) -> bool:
        """Whether this socket gets a connection that this machine makes to its port."""
        with socket.socket(sock.family, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.0)
            try:
                async with asyncio.timeout(_HANDSHAKES):
                    await asyncio.get_running_loop().sock_connect(probe, way_to(sock))
            except (OSError, TimeoutError):
                return True  # another relay would have accepted it
            own = probe.getsockname()
            deadline = asyncio.get_running_loop().time() + _ARRIVAL
            while True:
                here = False
                for accepted, peer in _accepted(sock):
                    if peer[:2] == own[:2]:
                        accepted.close()
                        here = True
                    else:
                        self._take(accepted, peer)
                if here or asyncio.get_running_loop().time() >= deadline:
                    return here
                await asyncio.sleep(_LOOK)

    def _take_all(self, sock: socket.socket) -> bool:
        """Take what the kernel has accepted for this socket; returns whether there was anything."""
        found = list(_accepted(sock))
        for accepted, peer in found:
            self._take(accepted, peer)
        return bool(found)

    def _take(self, accepted: socket.socket, peer: Any) -> None:
        """Serve a connection, if the limits allow one more."""
        assert self._connections is not None
        arrival = self._connections.arrivals.admit(str(peer[0]), partial(_cut, accepted))
        if arrival is None:
            accepted.close()
            return
        serving = self._serve(self._connections, accepted, arrival)
        task = asyncio.get_running_loop().create_task(serving, name="connection")
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _serve(self, connections: HttpConnections, accepted: socket.socket, arrival: Arrival) -> None:
        loop = asyncio.get_running_loop()
        try:
            tls = None if self._tls is None else self._tls.newest
            await loop.connect_accepted_socket(lambda: connections(arrival), accepted, ssl=tls)
        except OSError:  # failed TLS is counted, but not reported
            arrival.refused("bad_request")
        except BaseException:
            arrival.ends()
            raise
        else:
            return
        arrival.ends()


def _cut(sock: socket.socket) -> None:
    """End a connection whose TLS is not ready yet, and which no protocol can close."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _accepted(sock: socket.socket, *, full: bool = False) -> Iterator[_Accepted]:
    """Accepted connections of a listening socket; with ``full``, raises ``OSError`` if the system has no room."""
    while True:
        try:
            accepted, peer = sock.accept()
        except ConnectionAbortedError:
            continue  # the peer has already reset it
        except OSError as error:
            if full and error.errno in _FULL:
                raise
            return  # there is no connection, or no descriptor for it
        accepted.settimeout(0.0)
        yield accepted, peer


async def _bound(settings: RelaySettings, tls: Certificates | None) -> tuple[list[socket.socket], bool]:
    """The sockets, and whether they share the port with another relay."""
    host, port = settings.address
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    try:
        return sockets.bound(addresses, beside=False), False
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not settings.reuse_port:
            raise
    if not await asyncio.to_thread(_is_relay, host, port, tls=tls is not None):
        raise KdispatchError(
            "port_in_use", f"What listens on {settings.listen} does not answer like a relay with the same TLS setting."
        )
    return sockets.bound(addresses, beside=True), True


def _is_relay(host: str, port: int, *, tls: bool) -> bool:
    """Whether the program that listens there answers like a relay. No answer means no."""
    host, port = reachable((host, port))
    try:
        problem = ask(host, port, f"{PREFIX}/whoami", tls=unverified() if tls else None)
    except OSError:
        return False
    return problem is not None and problem.get("code") in {"token_refused", "misdirected"}
