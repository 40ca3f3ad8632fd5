"""Detects local programs whose machine vanishes while bytes for it are unacknowledged, which keepalive does not.

While Linux waits for an acknowledgement it sends no keepalive probes: it retransmits, for 15 minutes.
``TCP_USER_TIMEOUT`` bounds that, but also ends a connection whose program has only stopped reading. So this sets it
only after the other kernel has been silent for longer than a live one can be, and clears it after an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Any, Final

from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.aio.transport import LocalConnection

__all__ = ["bound_silence", "watching_peers"]

#: Seconds without any answer. The kernel retransmits at least every 120 s, also to a program that reads nothing. The
#: connection ends at the next retransmission.
PATIENCE: Final = 125.0
LOOK_EVERY: Final = 15.0  # seconds
_AT_ONCE: Final = 200  # sockets checked before others have their turn: 0.5 ms

_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)
# Offsets in Linux's struct tcp_info: retransmissions, and window probes, since the last answer.
_SENT_AGAIN: Final = 2
_ASKED: Final = 3
_ASKED_IN_VAIN: Final = 3  # on one machine the answer arrives before the kernel has counted the probe
_LAST_ANSWER: Final = struct.Struct("=I")  # milliseconds since the last answer
_LAST_ANSWER_AT: Final = 56


def bound_silence(sock: Any, seconds: float) -> None:
    """If the kernel waits for an answer, let it end the connection after ``seconds`` without one."""
    if _TCP_INFO is None or _TCP_USER_TIMEOUT is None:
        return
    with contextlib.suppress(OSError, ValueError):  # uvloop raises ValueError for a closed socket
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST_ANSWER_AT + _LAST_ANSWER.size)
        waits = info[_SENT_AGAIN] > 0 or info[_ASKED] >= _ASKED_IN_VAIN
        limit = int(seconds * 1000)
        silent = waits and _LAST_ANSWER.unpack_from(info, _LAST_ANSWER_AT)[0] > limit
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, limit if silent else 0)


@contextlib.contextmanager
def watching_peers(driver: EndpointDriver) -> Iterator[None]:
    """Check the driver's local connections while the block runs."""
    watch = _Watch(driver)
    try:
        yield
    finally:
        watch.stop()


class _Watch:
    """Checks all pipes at intervals, some at a time."""

    def __init__(self, driver: EndpointDriver) -> None:
        self._driver = driver
        self._handle: asyncio.Handle = driver.loop.call_later(LOOK_EVERY, self._begin)

    def stop(self) -> None:
        """Stop checking."""
        self._handle.cancel()

    def _begin(self) -> None:
        self._look(list(self._driver.pipes))

    def _look(self, pipes: list[LocalConnection]) -> None:
        for pipe in pipes[:_AT_ONCE]:
            if pipe.socket is not None and (sock := pipe.socket.get_extra_info("socket")) is not None:
                bound_silence(sock, PATIENCE)
        loop, rest = self._driver.loop, pipes[_AT_ONCE:]
        self._handle = loop.call_soon(self._look, rest) if rest else loop.call_later(LOOK_EVERY, self._begin)
