"""Servers that answer at a relay's port in place of a relay, and record when they were asked.

Each is for ``service`` of ``tests.net.tcp``: it handles one connection.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Final

from kdispatch_protocol.wire.frames import WELCOME, frame
from kdispatch_protocol.wire.messages import Welcome
from kdispatch_protocol.wire.websocket import BINARY, frame_head
from tests.net.tcp import Tcp

__all__ = ["Answer", "Asked", "close", "refuse", "upgrade", "welcome"]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TUNNEL: Final = b"GET /api/v1/tunnel "
Answer = Callable[[Tcp], Awaitable[None]]


class Asked:
    """A service whose ``answer`` may be replaced at any time; ``at`` has the time of each connection."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.at: list[float] = []

    async def __call__(self, tcp: Tcp) -> None:
        self.at.append(asyncio.get_running_loop().time())
        await self.answer(tcp)


async def _request(tcp: Tcp) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        received = await tcp.receive()
        if not received:
            raise ConnectionAbortedError
        request += received
    return request


async def close(tcp: Tcp) -> None:
    """Close at once."""


async def upgrade(tcp: Tcp) -> None:
    """Upgrade to a WebSocket, and close."""
    key = re.search(rb"(?i)sec-websocket-key: *(\S+)", await _request(tcp))
    assert key is not None
    accept = base64.b64encode(hashlib.sha1(key[1] + _GUID, usedforsecurity=False).digest())
    await tcp.send(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: kdispatch.1\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def welcome(stay: float, spread_ms: int = 500) -> Answer:
    """Accept the agent's session, and close it after this many seconds."""

    async def answer(tcp: Tcp) -> None:
        await upgrade(tcp)
        await tcp.receive()  # HELLO
        said = Welcome(version=1, relay="00" * 16, credit=1 << 26, spread_ms=spread_ms, opens=256, streams=1024)
        message = frame(WELCOME, payload=said.encode())
        await tcp.send(frame_head(BINARY, len(message), None) + message)
        await asyncio.sleep(stay)

    return answer


def refuse(status: str, code: str) -> Answer:
    """Answer with a problem that contains ``code``, as a relay would."""

    async def answer(tcp: Tcp) -> None:
        await _request(tcp)
        body = json.dumps({"code": code, "detail": "", "status": int(status[:3])}).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
        await tcp.send(head.encode() + body)

    return answer
