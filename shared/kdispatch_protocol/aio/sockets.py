"""Options of the sockets that carry sessions."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Final

__all__ = ["hold_unsent", "tune_session_socket"]

# Linux numbers, where Python has no name for them.
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18)

#: Bytes that the kernel may hold unsent: behind more of them, control frames would wait.
NOTSENT: Final = 128 * 1024
#: Milliseconds after which unacknowledged data means that the path is gone.
USER_TIMEOUT: Final = 30_000
#: Bytes of a receive buffer, as it is asked for, where the other end is near; Linux doubles it.
NEAR_BUFFER: Final = 128 * 1024
#: Microseconds of a round trip within which it is.
_NEAR: Final = 1000
# Where Linux's struct tcp_info has the smoothed round trip, a u32 in microseconds.
_RTT_AT: Final = 68


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
    if _is_near(sock):
        # A kernel lets a fast sender fill megabytes, and all of it is ahead of whatever small frame comes next: an echo
        # beside two bulk streams took 9 ms with what Linux gives by itself, and 3 ms with this, bulk being as fast.
        with contextlib.suppress(OSError, ValueError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NEAR_BUFFER)


def _is_near(sock: socket.socket) -> bool:
    """Whether the TCP connection's other end answers so soon that a small buffer is enough. Where unknown, no."""
    if sys.platform != "linux":
        return False
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
    except (OSError, ValueError):
        return False
    rtt = int.from_bytes(info[_RTT_AT : _RTT_AT + 4], sys.byteorder)
    return len(info) == _RTT_AT + 4 and 0 < rtt < _NEAR


def hold_unsent(sock: socket.socket | None, size: int) -> None:
    """Let the kernel hold no more than ``size`` bytes unsent: what waits there is out of every control frame's way."""
    if sock is not None:
        with contextlib.suppress(OSError, ValueError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, min(size, NOTSENT))
