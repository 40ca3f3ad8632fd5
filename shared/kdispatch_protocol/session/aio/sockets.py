"""Options of the sockets that carry sessions, and the reason why a socket can't listen."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from typing import Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.process.system_errors import words_of

__all__ = ["cannot_listen", "hold_unsent", "tune_session_socket", "watch_peer"]

# Linux's numbers, for options that Python has no name for. On other systems they mean something else.
_LINUX: Final = sys.platform == "linux"
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if _LINUX else None)
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18 if _LINUX else None)

#: Limit of unsent bytes in the kernel, because control frames wait behind them.
NOTSENT: Final = 128 * 1024
#: Milliseconds after which unacknowledged data means that the path is gone.
USER_TIMEOUT: Final = 30_000


#: Linux's errors for an address that no interface has, or a family that this machine lacks.
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM})


def cannot_listen(where: str, error: OSError) -> KdispatchError:
    """The error for ``where`` (as the user gave it); ``bad_request`` for an unusual reason."""
    code = "bad_request"
    if error.errno == errno.EADDRINUSE:
        code = "port_in_use"
    elif error.errno in _FORBIDDEN:
        # Windows reports this for a port that another program uses exclusively.
        code = "port_in_use" if os.name == "nt" else "port_forbidden"
    elif error.errno in _NOT_HERE or (error.errno is None and type(error) is OSError):
        code = "address_not_here"  # the latter is from asyncio, which has tried each address of a name
    # An event loop wraps the system's message in its own words.
    reason = words_of(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    return KdispatchError(code, f"{where} can't be listened on: {reason}.")


#: If a local program's machine loses power or network, its kernel says nothing. Seconds of silence before the first
#: keepalive probe, seconds between probes, and the number of unanswered probes: two minutes in total, as long as a
#: grace.
KEEP_IDLE: Final = 60
KEEP_INTERVAL: Final = 15
KEEP_COUNT: Final = 4

# macOS has another name for the first option.
_TCP_KEEPIDLE: Final = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_TCP_KEEPINTVL: Final = getattr(socket, "TCP_KEEPINTVL", None)
_TCP_KEEPCNT: Final = getattr(socket, "TCP_KEEPCNT", None)
_KEEPALIVE: Final = [
    (level, option, value)
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, _TCP_KEEPIDLE, KEEP_IDLE),
        (socket.IPPROTO_TCP, _TCP_KEEPINTVL, KEEP_INTERVAL),
        (socket.IPPROTO_TCP, _TCP_KEEPCNT, KEEP_COUNT),
    )
    if option is not None
]


def watch_peer(sock: socket.socket) -> None:
    """Enable TCP keepalive, to detect that a local program's machine is gone. Connections inherit it from a listener.

    ``TCP_USER_TIMEOUT`` would also end a connection whose program has only stopped reading.
    """
    for level, option, value in _KEEPALIVE:
        try:  # noqa: SIM105 - `suppress` costs more than the call, at each connection that a host makes
            sock.setsockopt(level, option, value)
        except OSError:
            pass


def tune_session_socket(sock: socket.socket | None) -> None:
    """Set the options that the platform has. Never call this for a local socket: its reader may pause for any time."""
    if sock is None:
        return
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (_TCP_NOTSENT_LOWAT, NOTSENT),
        (_TCP_USER_TIMEOUT, USER_TIMEOUT),
    ):
        if option is not None:
            with contextlib.suppress(OSError, ValueError):  # uvloop raises ValueError for a closed socket
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def hold_unsent(sock: socket.socket | None, size: int) -> None:
    """Limit unsent bytes in the kernel to ``size``, because control frames wait behind them."""
    if sock is not None and _TCP_NOTSENT_LOWAT is not None:
        with contextlib.suppress(OSError, ValueError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, min(size, NOTSENT))
