"""Options of the sockets that carry sessions, and why a socket can't listen."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Final

from kdispatch_protocol.errors import KdispatchError

__all__ = ["cannot_listen", "hold_unsent", "tune_session_socket", "watch_peer"]

# Linux numbers, where Python has no name for them.
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18)

#: Bytes that the kernel may hold unsent: behind more of them, control frames would wait.
NOTSENT: Final = 128 * 1024
#: Milliseconds after which unacknowledged data means that the path is gone.
USER_TIMEOUT: Final = 30_000


#: What Linux says of an address that no interface has, or of a family that this machine lacks.
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM})


def cannot_listen(where: str, error: OSError) -> KdispatchError:
    """Why ``where``, as it was asked for, can't be listened on; ``bad_request`` for an unusual reason."""
    code = "bad_request"
    if error.errno == errno.EADDRINUSE:
        code = "port_in_use"
    elif error.errno in _FORBIDDEN:
        # Windows says so of a port that another program has for itself alone.
        code = "port_in_use" if os.name == "nt" else "port_forbidden"
    elif error.errno in _NOT_HERE or (error.errno is None and type(error) is OSError):
        code = "address_not_here"  # the latter is asyncio's, which has tried each address of a name
    # An event loop puts words of its own around the system's.
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    return KdispatchError(code, f"{where} can't be listened on: {reason}.")


#: A local program on another machine that vanishes (no power, no network) says nothing. Seconds of silence after which
#: its kernel is asked, seconds between questions, and how many may have no answer: two minutes in all, a grace's time.
KEEP_IDLE: Final = 60
KEEP_INTERVAL: Final = 15
KEEP_COUNT: Final = 4

# macOS has another name for the first.
_TCP_KEEPIDLE: Final = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_TCP_KEEPINTVL: Final = getattr(socket, "TCP_KEEPINTVL", None)
_TCP_KEEPCNT: Final = getattr(socket, "TCP_KEEPCNT", None)


def watch_peer(sock: socket.socket) -> None:
    """Let the kernel find out that a local program's machine is gone. A listener's connections inherit it.

    Not by ``TCP_USER_TIMEOUT``: it also ends a connection whose program has only stopped to read.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((_TCP_KEEPIDLE, KEEP_IDLE), (_TCP_KEEPINTVL, KEEP_INTERVAL), (_TCP_KEEPCNT, KEEP_COUNT)):
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def tune_session_socket(sock: socket.socket | None) -> None:
    """Set what the platform knows; never for a local socket, whose reader may stop as long as it likes."""
    if sock is None:
        return
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (_TCP_NOTSENT_LOWAT, NOTSENT),
        (_TCP_USER_TIMEOUT, USER_TIMEOUT),
    ):
        with contextlib.suppress(OSError, ValueError):  # uvloop's word for a socket that is closed
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def hold_unsent(sock: socket.socket | None, size: int) -> None:
    """Let the kernel hold no more than ``size`` bytes unsent: what waits there is out of every control frame's way."""
    if sock is not None:
        with contextlib.suppress(OSError, ValueError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, min(size, NOTSENT))
