"""A descriptor that is handed to a transport is closed exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from typing import Literal, cast

import pytest

from kdispatch.local.pipe import reset_when_closed
from kdispatch_protocol.session.aio.handover import connection_over

End = Literal["aborts", "closes", "writes"]


class _Ends(asyncio.Protocol):
    """Ends its connection at once, or writes to a peer that has reset it."""

    def __init__(self, end: End) -> None:
        self._end = end
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        if self._end == "aborts":
            transport.abort()
        elif self._end == "closes":
            transport.close()
        else:
            transport.write(b"x")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)


def _reset_connection() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    reset_when_closed(theirs)
    theirs.close()
    ours.settimeout(0)
    return ours


async def _closes_once(end: End) -> None:
    sock = _reset_connection()
    number = sock.fileno()
    protocol = _Ends(end)
    await connection_over(lambda: protocol, sock)
    await protocol.lost
    for _ in range(3):
        await asyncio.sleep(0)
    with contextlib.suppress(OSError):
        os.fstat(number)
        pytest.fail("the transport did not close it")
    # Another file gets the number, and keeps it.
    other = os.open(os.devnull, os.O_RDONLY)
    if other != number:
        os.dup2(other, number)
        os.close(other)
    try:
        del sock
        gc.collect()
        os.fstat(number)
    finally:
        os.close(number)


@pytest.mark.parametrize("end", ["aborts", "closes", "writes"])
async def test_asyncio(end: End) -> None:
    """On asyncio's loop a connection that ends at once closes its descriptor, and nothing closes it again."""
    await _closes_once(end)


@pytest.mark.parametrize("end", ["aborts", "closes", "writes"])
def test_uvloop(end: End) -> None:
    """The same holds on uvloop, which learns late which object owns the descriptor."""
    uvloop = pytest.importorskip("uvloop")
    uvloop.run(_closes_once(end))
