"""An address of this machine that accepts no connection: the kernel lets every new one wait for ever."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["black_hole"]


@contextmanager
def black_hole(address: str = "127.0.0.2", port: int = 0) -> Iterator[int]:
    """A port on which connections get no answer for the length of the block: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((address, port))
        listening.listen(0)
        taken = listening.getsockname()
        for _ in range(4):  # more than the kernel queues; none is accepted
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(taken)
        yield int(taken[1])
