"""Both ends of a TCP connection on this machine."""

from __future__ import annotations

import asyncio
import socket

from tests.net.tcp import Tcp

__all__ = ["tcp_pair"]


async def tcp_pair(*, buffers: int = 0) -> tuple[Tcp, socket.socket]:
    """A program's end, and the agent's end for a pipe; ``buffers`` limits what the kernel holds for the program."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if buffers:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        listener.listen()
        listener.setblocking(False)
        program = await Tcp.connect(listener.getsockname()[1], receive_buffer=buffers)
        agent, _ = await asyncio.get_running_loop().sock_accept(listener)
    return program, agent
