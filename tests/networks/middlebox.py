"""Middleboxes as found in networks between an agent and a relay: each misbehaves in one way, on purpose.

A box passes everything on except what its rules say. Towards the agent it speaks plain HTTP, or TLS with its own
certificate, like a box that intercepts TLS; towards the relay it speaks what the relay speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import trustme

__all__ = ["ISSUER", "Interception", "Middlebox", "Rules", "middlebox"]

KIB: Final = 1024
_CHUNK: Final = 64 * KIB
_HEAD_END: Final = b"\r\n\r\n"
_HEAD_MAX: Final = 64 * KIB
_FLUSH: Final = 1.0  # seconds for an end to take the bytes passed on before
#: The issuer in the certificates of a network that intercepts TLS, as a person reads it.
ISSUER: Final = "Example Corp Web Gateway"
_REFUSAL: Final = (
    b"HTTP/1.1 400 Bad Request\r\nServer: gateway\r\nContent-Type: text/html\r\nContent-Length: 25\r\n"
    b"Connection: close\r\n\r\n<html>Bad Request.</html>"
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a box does; 0 turns a rule off. Sizes are bytes, times are seconds.

    ``strips`` removes the ``Upgrade`` header from requests, ``strips_token`` removes ``Authorization``, and
    ``adds_origin`` adds a web page's ``Origin``. ``refuses`` answers an upgrade with 400. ``buffers`` holds bytes
    back in either direction, after the heads of an upgrade, until so many are there or the sender ends.
    ``idle`` cuts a connection after so long without a byte; with ``counts`` only bytes ``up``, from the agent, or
    ``down`` count. ``life`` cuts each connection at that age. ``silently``: after a cut the box drops all bytes, and
    tells neither end.
    """

    strips: bool = False
    strips_token: bool = False
    adds_origin: bool = False
    refuses: bool = False
    buffers: int = 0
    idle: float = 0.0
    counts: Literal["", "up", "down"] = ""
    life: float = 0.0
    silently: bool = False


class Interception:
    """A CA that the network installed on its machines, and the box's certificate in the relay's name."""

    def __init__(self, folder: Path, name: str = "127.0.0.1") -> None:
        authority = trustme.CA(organization_name="Example Corp", organization_unit_name=ISSUER)
        self.ca_file = folder / "interception.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(self.context)


@dataclass(eq=False)
class Middlebox:
    """A running box. Its ``rules`` may change at any time: existing connections keep the old ones."""

    to: int
    rules: Rules
    port: int = 0
    secure: bool = False
    #: The TLS context towards a relay that speaks TLS; it decides what the box trusts.
    upstream: ssl.SSLContext | None = None
    taken: int = 0  # connections so far
    cuts: int = 0  # connections that the rules ended
    _wires: set[_Wire] = field(default_factory=set)

    @property
    def url(self) -> str:
        """The URL that an agent uses as the relay's."""
        return f"http{'s' if self.secure else ''}://127.0.0.1:{self.port}"

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection from its beginning to its end."""
        self.taken += 1
        wire = _Wire(self.rules, _End(reader, writer))
        self._wires.add(wire)
        try:
            await wire.carry(self.to, self.upstream)
        finally:
            self.cuts += wire.struck
            self._wires.discard(wire)
            await wire.end()


@dataclass(frozen=True, eq=False)
class _End:
    """One end's connection with the box."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def finish(self) -> None:
        if self.writer.can_write_eof():
            self.writer.write_eof()


class _Wire:
    """The two connections of one tunnel, and the bytes between them."""

    def __init__(self, rules: Rules, agent: _End) -> None:
        self._rules = rules
        self._agent = agent
        self._relay: _End | None = None
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._upgrades = False  # the request asked for an upgrade
        self.struck = False

    async def end(self) -> None:
        """Close both connections; bytes passed on before still arrive, unless the rules cut."""
        writers = [end.writer for end in (self._agent, self._relay) if end is not None]
        for writer in writers:
            if self.struck:
                writer.transport.abort()
            else:
                writer.close()
        closing = [self._loop.create_task(writer.wait_closed()) for writer in writers]
        try:
            await asyncio.wait(closing, timeout=_FLUSH)
        finally:  # an end does not read, or the box itself ends now
            for writer in writers:
                writer.transport.abort()
            for outcome in await asyncio.gather(*closing, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, OSError):  # the end is gone
                    raise outcome

    async def carry(self, to: int, upstream: ssl.SSLContext | None) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await self._request()
            if self._upgrades and self._rules.refuses:
                await self._agent.send(_REFUSAL)
                self._agent.finish()
                return
            name = "127.0.0.1" if upstream is not None else None
            self._relay = relay = _End(
                *await asyncio.open_connection("127.0.0.1", to, ssl=upstream, server_hostname=name)
            )
            await relay.send(head)
            await self._pass_on(relay)

    async def _request(self) -> bytes:
        """Return the first request's head, with the rules applied."""
        head = await self._agent.reader.readuntil(_HEAD_END)
        self._heard = self._loop.time()
        lines = head.split(b"\r\n")
        self._upgrades = any(line.lower().startswith(b"upgrade:") for line in lines)
        if self._rules.strips:
            lines = [line for line in lines if not line.lower().startswith((b"upgrade:", b"connection: upgrade"))]
        if self._rules.strips_token:
            lines = [line for line in lines if not line.lower().startswith(b"authorization:")]
        if self._rules.adds_origin:
            lines.insert(1, b"Origin: https://page.example")
        return b"\r\n".join(lines)

    async def _pass_on(self, relay: _End) -> None:
        ways = [
            self._loop.create_task(self._way(self._agent, relay, answers=False)),
            self._loop.create_task(self._way(relay, self._agent, answers=True)),
        ]
        both = asyncio.gather(*ways)
        clock = self._loop.create_task(self._clock())
        waiting: set[asyncio.Future[object]] = {both, clock}  # type: ignore[arg-type]  # the result type is unused
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if clock.done() and not both.done():
                self.struck = True
                if self._rules.silently:
                    await both
        finally:
            for task in (clock, both):
                task.cancel()
            await asyncio.gather(clock, both, return_exceptions=True)

    async def _way(self, from_: _End, to: _End, *, answers: bool) -> None:
        held = bytearray()
        if answers and self._upgrades and self._rules.buffers:
            # The head passes: without it, the upgrade could not complete.
            await to.send(await from_.reader.readuntil(_HEAD_END))
        while data := await from_.reader.read(_CHUNK):
            if self.struck:
                continue
            if self._rules.counts in {"", "down" if answers else "up"}:
                self._heard = self._loop.time()
            held += data
            if len(held) >= (self._rules.buffers if self._upgrades else 0):
                await to.send(bytes(held))
                held.clear()
        if not self.struck:
            if held:
                await to.send(bytes(held))
            to.finish()

    async def _clock(self) -> None:
        """Return when the rules end this connection."""
        began = self._loop.time()
        while True:
            ends = [began + self._rules.life] if self._rules.life else []
            ends += [self._heard + self._rules.idle] if self._rules.idle else []
            rest = min(ends) - self._loop.time() if ends else 3600.0
            if rest <= 0:
                return
            await asyncio.sleep(rest)


@asynccontextmanager
async def middlebox(
    to: int, rules: Rules | None = None, *, opens: Interception | None = None, upstream: ssl.SSLContext | None = None
) -> AsyncIterator[Middlebox]:
    """Run a box in front of port ``to`` of this machine; the block's end closes it and its connections.

    ``opens``: the box speaks TLS to agents, with the interception's certificate. ``upstream``: the relay speaks TLS.
    """
    box = Middlebox(to, rules or Rules(), secure=opens is not None, upstream=upstream)
    tasks: set[asyncio.Task[None]] = set()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(box.carry(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    context = opens.context if opens is not None else None
    server = await asyncio.start_server(take, "127.0.0.1", 0, limit=_HEAD_MAX, ssl=context, backlog=2048)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()
        left = set(tasks)
        for task in left:
            task.cancel()
        for outcome in await asyncio.gather(*left, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await server.wait_closed()
