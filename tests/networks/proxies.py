"""Proxies of the tests: an HTTP proxy with scripted answers, and a SOCKS5 server (RFC 1928 and 1929).

Each is a handler for ``service`` of ``tests.net.tcp``. They know names that the system's resolver does not.
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
#: Names that the proxies of these tests know and this machine does not.
NAMES: Final[Mapping[str, str]] = {"relay.test": "127.0.0.1"}


async def pipe(tcp: Tcp, host: str, port: int) -> None:
    """Pass bytes between this connection and one to ``host``, until either ends."""
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
    """Answers requests with its answers in order, and repeats the last one.

    An empty answer is silence, and ``None`` closes. After :data:`ESTABLISHED` the proxy echoes; with ``through`` it
    connects to the requested target, with ``closing`` it closes. After any other answer the connection takes another
    request, unless the answer says ``close``. ``requests`` has the heads, ``connections`` each request's connection.
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
    """Answers each message with the next of ``words``, and the message after those with an end or a reset."""

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
    """A SOCKS5 server: with ``user`` it accepts only that user, with ``reply`` it refuses every request so."""

    def __init__(self, user: str = "", password: str = "", *, reply: int = 0) -> None:
        self._user = user
        self._password = password
        self._reply = reply
        self.asked: list[tuple[str, int]] = []  # host and port as in the request

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
