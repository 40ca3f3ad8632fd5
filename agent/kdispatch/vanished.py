"""Local programs whose machine vanishes while bytes for it are under way, which TCP's keep-alives do not find out.

Linux asks for no sign of life while it waits for an acknowledgement: it sends the bytes again, for 15 minutes.
``TCP_USER_TIMEOUT`` bounds that, and also ends a connection whose program has only stopped to read. So it is set
while nothing is acknowledged, and taken back once something is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final

from kdispatch_protocol.aio.driver import EndpointDriver

__all__ = ["bound_silence", "watching_peers"]

#: Seconds without an acknowledgement after which a connection ends: as long as keep-alives take.
PATIENCE: Final = 120.0
LOOK_EVERY: Final = 15.0  # seconds
_AT_ONCE: Final = 200  # sockets that are looked at before others have their turn: 0.5 ms
_PROBES: Final = 3  # unanswered questions for room; the kernel asks ever more seldom, at last every two minutes

_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)
# Linux' struct tcp_info, of whose beginning each field is a byte.
_RETRANSMITS: Final = 2
_UNANSWERED: Final = 3


def bound_silence(sock: Any, seconds: float) -> None:
    """Let the kernel end the connection once it has had no answer for so long, if it waits for one now."""
    if _TCP_INFO is None or _TCP_USER_TIMEOUT is None:
        return
    with contextlib.suppress(OSError, ValueError):  # uvloop's word for a socket that is closed
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _UNANSWERED + 1)
        silent = info[_RETRANSMITS] > 0 or info[_UNANSWERED] >= _PROBES
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(seconds * 1000) if silent else 0)


@contextlib.contextmanager
def watching_peers(driver: EndpointDriver) -> Iterator[None]:
    """Look at the driver's local connections meanwhile."""
    task = asyncio.create_task(_watch(driver), name="kdispatch vanished peers")
    try:
        yield
    finally:
        task.cancel()


async def _watch(driver: EndpointDriver) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY)
        for number, pipe in enumerate(list(driver.pipes), 1):
            if pipe.socket is not None and (sock := pipe.socket.get_extra_info("socket")) is not None:
                bound_silence(sock, PATIENCE)
            if not number % _AT_ONCE:
                await asyncio.sleep(0)
