"""The service of the benchmarks: python -m bench.service, which prints its port.

The first byte of a connection is its kind: ``d`` sends without end, ``u`` drains, ``b`` does both at once, ``e``
echoes all following bytes, ``c`` answers each byte with the number of bytes drained so far. A separate process moves
bulk data, so that an echo beside it waits at most for a processor, not for this program.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Final

__all__ = ["BLOCK", "PIECE", "Loop"]

#: Bytes of one send or receive: few calls, and still within a core's own cache.
PIECE: Final = 512 * 1024
BLOCK: Final = bytes(PIECE)
_BULK: Final = frozenset(b"dub")
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT
_BACKLOG: Final = 4096

Handler = Callable[[int], None]


class Loop:
    """A minimal event loop: a table of handlers by descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def add(self, sock: socket.socket, events: int, handler: Handler) -> None:
        """Call ``handler`` on any of ``events``."""
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock.fileno(), events)

    def change(self, sock: socket.socket, handler: Handler) -> None:
        """Replace the handler."""
        self._handlers[sock.fileno()] = handler

    def close(self, sock: socket.socket) -> None:
        """Remove the socket and close it."""
        del self._handlers[sock.fileno()]
        self._epoll.unregister(sock.fileno())
        sock.close()

    def turn(self, wait: float | None = None) -> None:
        """Handle ready sockets, after a wait of at most ``wait`` seconds."""
        handlers = self._handlers
        for descriptor, events in self._epoll.poll(wait):
            if handler := handlers.get(descriptor):
                handler(events)


class _Bulk:
    """The process that moves bulk data: it gets connections and their first byte from the other process."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._loop = Loop()
        self._loop.add(channel, _READ, self._arrived)
        self._buffer = bytearray(PIECE)
        self._drained = 0

    def run(self) -> None:
        """Serve without end."""
        while True:
            self._loop.turn()

    def _arrived(self, _: int) -> None:
        kind, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
        if not kind:
            sys.exit()
        sock = socket.socket(fileno=descriptors[0])
        if kind == b"c":
            self._loop.add(sock, _READ, lambda _: self._count(sock))
            return
        events = {b"d": _WRITE | _READ, b"u": _READ, b"b": _READ | _WRITE}[kind]
        self._loop.add(sock, events, lambda ready: self._move(sock, ready))

    def _move(self, sock: socket.socket, ready: int) -> None:
        try:
            if ready & (_READ | select.EPOLLHUP | select.EPOLLERR):
                count = sock.recv_into(self._buffer)
                self._drained += count
                if not count:
                    self._loop.close(sock)
                    return
            if ready & _WRITE:
                sock.send(BLOCK)
        except BlockingIOError:
            pass
        except OSError:
            self._loop.close(sock)

    def _count(self, sock: socket.socket) -> None:
        if sock.recv(1):
            sock.send(self._drained.to_bytes(8, "big"))
        else:
            self._loop.close(sock)


class _Service:
    """The process that accepts and echoes."""

    def __init__(self, listener: socket.socket, channel: socket.socket) -> None:
        self._listener = listener
        self._channel = channel
        self._loop = Loop()
        self._loop.add(listener, _READ, self._accept)

    def run(self) -> None:
        """Serve without end."""
        while True:
            self._loop.turn()

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop.add(sock, _READ, lambda _: self._begin(sock))

    def _begin(self, sock: socket.socket) -> None:
        kind = self._receive(sock, 1)
        if kind is None:
            return
        if kind[0] in _BULK or kind == b"c":
            socket.send_fds(self._channel, [kind], [sock.fileno()])
            self._loop.close(sock)
        else:
            self._loop.change(sock, lambda _: self._echo(sock))
            self._echo(sock)

    def _echo(self, sock: socket.socket) -> None:
        if data := self._receive(sock, PIECE):
            sock.setblocking(True)
            sock.sendall(data)
            sock.setblocking(False)

    def _receive(self, sock: socket.socket, size: int) -> bytes | None:
        """Return available bytes; ``None`` if there are none yet, or at the end, which closes the socket."""
        try:
            if data := sock.recv(size):
                return data
        except BlockingIOError:
            return None
        except OSError:
            pass
        self._loop.close(sock)
        return None


def main() -> None:
    """Print the port and serve until killed."""
    channel, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        channel.close()
        _Bulk(others).run()
    others.close()
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    _Service(listener, channel).run()


if __name__ == "__main__":
    main()
