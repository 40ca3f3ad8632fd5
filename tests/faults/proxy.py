"""A proxy to the relay that breaks on command: it resets both ends at an exact byte, or drops all bytes.

It passes bytes unchanged. Only the agents' tunnels break, and REST requests pass.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.faults.heads import Head, Heads
from tests.net.tcp import Tcp, service

__all__ = ["Cut", "FaultProxy", "Into", "Way", "fault_proxy"]

#: ``up`` is from the agent to the relay.
Way = Literal["up", "down"]
#: Any byte; inside a WebSocket frame's head; inside the kdispatch header after one.
Into = Literal["bytes", "head", "frame"]

_CHUNK: Final = 256 * 1024
_TUNNEL: Final = b"GET /api/v1/tunnel "
_HEADER: Final = 16  # bytes of a kdispatch frame's header
_DRAIN: Final = 1.0  # seconds for forwarded bytes to arrive; a receiver that does not read never takes them


@dataclass(frozen=True)
class Cut:
    """Reset both ends of a connection after ``after`` more bytes in ``way``, at the next place of kind ``into``.

    The bytes before that place arrive, later ones do not. ``by`` chooses the byte in a head or header. With ``eats``
    the proxy first drops all bytes in both directions for so many seconds, while new connections pass. A ``fresh``
    cut hits the first bytes of a session: the proxy resets the existing tunnel, and cuts the next one.
    """

    way: Way
    after: int
    into: Into = "bytes"
    by: int = 0
    eats: float = 0.0
    fresh: bool = False

    def place(self, head: Head) -> int:
        """The number of bytes that pass; it lies inside ``head`` or the kdispatch header after it."""
        if self.into == "head":
            return head.start + 1 + self.by % (head.size - 1)
        return head.start + head.size + 1 + self.by % (_HEADER - 1)

    def __str__(self) -> str:
        where = {"bytes": "", "head": " inside a WebSocket head", "frame": " inside a frame's header"}[self.into]
        eats = f", after eating for {self.eats:.2f} s" if self.eats else ""
        fresh = " of a new session" if self.fresh else ""
        return f"{self.way}, {self.after} bytes on{where}{fresh}{eats}"


class _Path:
    """One direction of one connection."""

    def __init__(self, from_: Tcp, to: Tcp) -> None:
        self.from_ = from_
        self.to = to
        self.passed = 0
        self.heads = Heads()
        self.stop: int | None = None  # the position of the cut
        self.seek: tuple[int, Cut] | None = None  # a position, and the cut to place at the first fitting byte after it

    def arm(self, cut: Cut) -> None:
        if cut.into == "bytes":
            self.stop = self.passed + cut.after
        else:
            self.seek = (self.passed + cut.after, cut)

    def look(self, piece: memoryview) -> None:
        """Find frame heads in the next bytes before they pass."""
        for head in self.heads.feed(piece):
            if self.seek is not None and head.start >= self.seek[0] and self.seek[1].place(head) > self.passed:
                self.stop, self.seek = self.seek[1].place(head), None


class _Wire:
    """One connection of an agent through the proxy."""

    def __init__(self, proxy: FaultProxy, agent: Tcp, relay: Tcp) -> None:
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self.paths: dict[Way, _Path] = {"up": _Path(agent, relay), "down": _Path(relay, agent)}
        self.cut: Cut | None = None
        self.struck: asyncio.Future[None] | None = None
        self.eating = False
        self.over: asyncio.Future[None] = self._loop.create_future()

    def arm(self, cut: Cut, struck: asyncio.Future[None]) -> None:
        self.cut, self.struck = cut, struck
        self.paths[cut.way].arm(cut)

    def end(self) -> None:
        """Reset both ends now."""
        if not self.over.done():
            self.over.set_result(None)

    async def carry(self) -> None:
        """Pass bytes until both directions have ended, or one broke."""
        both = asyncio.create_task(self._both())
        ends: set[asyncio.Future[Any]] = {both, self.over}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            clean = both.done() and not both.cancelled() and both.exception() is None and both.result()
            both.cancel()
            await asyncio.gather(both, return_exceptions=True)
            if not clean:
                for path in self.paths.values():
                    path.from_.reset()

    async def _both(self) -> bool:
        """Return whether both directions ended cleanly."""
        clean = True
        try:
            async with asyncio.TaskGroup() as group:
                for way in self.paths:
                    group.create_task(self._pass(way))
        except* ConnectionError:
            clean = False
        return clean

    async def _pass(self, way: Way) -> None:
        path = self.paths[way]
        buffer = memoryview(bytearray(_CHUNK))
        while True:
            count = await self._loop.sock_recv_into(path.from_.sock, buffer)
            if self.eating:
                break
            if not count:
                path.to.finish()
                return
            piece = buffer[:count]
            if path.passed == 0 and way == "up" and bytes(piece[: len(_TUNNEL)]) == _TUNNEL:
                self._proxy.tunnel(self)
            path.look(piece)
            if path.stop is not None and path.stop <= path.passed + count:
                await path.to.send(piece[: path.stop - path.passed])
                path.passed = path.stop
                await self._strike(path)
                break
            await path.to.send(piece)
            path.passed += count
        await self._eat(path, buffer)

    async def _strike(self, path: _Path) -> None:
        assert self.cut is not None and self.struck is not None
        if self.cut.eats:
            self.eating = True
            self._loop.call_later(self.cut.eats, self.end)
        else:
            await _arrived(path.to)
            self.end()
        self._proxy.strikes += 1
        if not self.struck.done():  # the waiting task may be gone
            self.struck.set_result(None)

    async def _eat(self, path: _Path, buffer: memoryview) -> None:
        """Drop all bytes, and do not pass an end on."""
        try:
            while await self._loop.sock_recv_into(path.from_.sock, buffer):
                pass
        except ConnectionError:
            pass
        await self.over


async def _arrived(tcp: Tcp) -> None:
    """Wait until the other end has all bytes, because a reset discards bytes in flight."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _DRAIN
    while tcp.sock.fileno() >= 0 and loop.time() < deadline:
        (queued,) = struct.unpack("i", fcntl.ioctl(tcp.sock, termios.TIOCOUTQ, bytes(4)))
        if not queued:
            return
        await asyncio.sleep(0.001)


class FaultProxy:
    """Passes connections from ``port`` to ``to``. The newest tunnel takes a cut, or the next one if it has a cut."""

    def __init__(self, to: int) -> None:
        self.port = 0
        self.tunnels = 0  # tunnels so far
        self.strikes = 0  # cuts that reached their byte
        self.away = False  # reset every connection, like an unreachable network
        self._to = to
        self._wires: list[_Wire] = []
        self._waiting: deque[tuple[Cut, asyncio.Future[None]]] = deque()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, cut: Cut) -> asyncio.Future[None]:
        """Cut the current tunnel, or the next one; the future is done when the cut has happened."""
        struck: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._wires and self._wires[-1].cut is None and not cut.fresh:
            self._wires[-1].arm(cut, struck)
        else:
            self._waiting.append((cut, struck))
        if cut.fresh:
            self.cut_now()
        return struck

    def cut_now(self) -> None:
        """Reset every tunnel now, at any byte."""
        for wire in self._wires:
            wire.end()

    def lose(self) -> None:
        """Reset all tunnels, and all new connections until ``away`` is false again."""
        self.away = True
        self.cut_now()

    def tunnel(self, wire: _Wire) -> None:
        """Register a connection as a tunnel, and give it a waiting cut."""
        self.tunnels += 1
        self._wires.append(wire)
        while self._waiting and wire.cut is None:
            cut, struck = self._waiting.popleft()
            if not struck.done():
                wire.arm(cut, struck)

    async def carry(self, agent: Tcp) -> None:
        """Carry one connection from its beginning to its end."""
        if self.away:
            agent.reset()
            return
        try:
            relay = await Tcp.connect(self._to)
        except OSError:
            agent.reset()
            return
        async with relay:
            wire = _Wire(self, agent, relay)
            try:
                await wire.carry()
            finally:
                if wire in self._wires:
                    self._wires.remove(wire)
                if wire.cut is not None and wire.struck is not None and not wire.struck.done():
                    self._waiting.appendleft((wire.cut, wire.struck))  # the tunnel broke earlier, for another reason


@asynccontextmanager
async def fault_proxy(to: int) -> AsyncIterator[FaultProxy]:
    """Run a proxy to port ``to`` on this machine; the block's end closes it and its connections."""
    proxy = FaultProxy(to)
    async with service(proxy.carry) as running:
        proxy.port = running.port
        yield proxy
