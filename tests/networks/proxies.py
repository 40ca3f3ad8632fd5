"""Proxies of the tests: an HTTP proxy whose answers a test chooses, and a SOCKS5 server (RFC 1928 and 1929).

Each is for ``service`` of ``tests.net.tcp``. They know names that nobody else can resolve.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from typing import Final

from tests.net.tcp import Tcp

__all__ = ["ESTABLISHED", "NAMES", "SaysAndCloses", "ScriptedProxy", "SocksServer", "pipe"]

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
#: What the proxies of these tests know, and this machine does not.
NAMES: Final[Mapping[str, str]] = {"relay.test": "127.0.0.1"}


async def pipe(tcp: Tcp, host: str, port: int) -> None:
    """Pass everything on between this connection and one to ``host``, until either ends."""
    loop = asyncio.get_running_loop()
    with contextlib.closing(socket.socket()) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (NAMES.get(host, host), port))
        async with Tcp(sock) as other:

            async def one_way(source: Tcp, sink: Tcp) -> None:
                with contextlib.suppress(ConnectionError):
                    async for chunk in source.chunks():
                        await sink.send(bytes(chunk))

            ways = [asyncio.ensure_future(one_way(tcp, other)), asyncio.ensure_future(one_way(other, tcp))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)


class ScriptedProxy:
    """Gives the requests its answers one after the other, the last one again and again.

    An empty answer is silence, ``None`` closes; what begins with :data:`ESTABLISHED` leads to an echo, or ``through``
    to what was asked for, or ``closing`` to an end. After any other the connection takes another request, unless
    the answer says that it is closed. ``requests`` are their heads, ``connections`` on which connection each came.
    """

    def __init__(self, *answers: bytes | None, through: bool = False, closing: bool = False) -> None:
        self._answers = list(answers)
        self._through = through
        self._closing = closing
        self.requests: list[str] = []
        self.connections: list[int] = []
        self._accepted = 0

    async def __call__(self, tcp: Tcp) -> None:
        self._accepted += 1
        number, received = self._accepted, b""
        while True:
            while b"\r\n\r\n" not in received:
                data = await tcp.receive()
                if not data:
                    return
                received += data
            head, _, received = received.partition(b"\r\n\r\n")
            self.requests.append(head.decode("latin-1"))
            self.connections.append(number)
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if answer is None:
                return
            if not answer:
                await asyncio.Event().wait()
            await tcp.send(answer)
            if answer.startswith(ESTABLISHED):
                await self._connected(tcp, head)
                return
            if b"close" in answer:
                return

    async def _connected(self, tcp: Tcp, head: bytes) -> None:
        if self._through:
            host, _, port = head.split()[1].decode().rpartition(":")
            await pipe(tcp, host, int(port))
        elif not self._closing:
            async for chunk in tcp.chunks():
                await tcp.send(bytes(chunk))


class SaysAndCloses:
    """Answers what it hears by one of ``words`` after the other, and the next by the end, or a reset, of it all."""

    def __init__(self, *words: bytes, resets: bool = False) -> None:
        self._words = words
        self._resets = resets

    async def __call__(self, tcp: Tcp) -> None:
        for word in self._words:
            await tcp.receive()
            await tcp.send(word)
        await tcp.receive()
        if self._resets:
            tcp.reset()


class SocksServer:
    """A SOCKS5 server: with ``user`` it lets nobody else in, with ``reply`` it refuses everybody so."""

    def __init__(self, user: str = "", password: str = "", *, reply: int = 0) -> None:
        self._user = user
        self._password = password
        self._reply = reply
        self.asked: list[tuple[str, int]] = []  # host and port, as they were written

    async def __call__(self, tcp: Tcp) -> None:
        _, count = await tcp.receive_exactly(2)
        methods = await tcp.receive_exactly(count)
        wanted = 2 if self._user else 0
        if wanted not in methods:
            await tcp.send(b"\x05\xff")
            return
        await tcp.send(bytes([5, wanted]))
        if self._user and not await self._lets_in(tcp):
            return
        _, _, _, kind = await tcp.receive_exactly(4)
        if kind == 3:
            host = (await tcp.receive_exactly((await tcp.receive_exactly(1))[0])).decode()
        else:
            host = str(ipaddress.ip_address(await tcp.receive_exactly(4 if kind == 1 else 16)))
        port = int.from_bytes(await tcp.receive_exactly(2), "big")
        self.asked.append((host, port))
        await tcp.send(bytes([5, self._reply, 0, 1, 0, 0, 0, 0, 0, 0]))
        if not self._reply:
            await pipe(tcp, host, port)

    async def _lets_in(self, tcp: Tcp) -> bool:
        assert await tcp.receive_exactly(1) == b"\x01"
        user = await tcp.receive_exactly((await tcp.receive_exactly(1))[0])
        password = await tcp.receive_exactly((await tcp.receive_exactly(1))[0])
        right = (user.decode(), password.decode()) == (self._user, self._password)
        await tcp.send(b"\x01\x00" if right else b"\x01\x01")
        return right
