"""A hostile relay: it accepts a real host's offer, and then sends that host any request a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Offer, Offered, Reset, Welcome
from kdispatch_protocol.wire.websocket import BINARY, WebSocketReader, frame_head
from tests.core.wire import Messages
from tests.net.false_relays import upgrade
from tests.net.tcp import Tcp, service

__all__ = ["HostileRelay", "hostile_relay"]


class HostileRelay:
    """``answers`` maps the number of each stream that the relay asked for to the agent's answer."""

    def __init__(self) -> None:
        self.port = 0
        self.answers: dict[int, str] = {}
        self.offered = asyncio.Event()
        self.refuses: bytes | None = None  # payload of the RESET that answers each offer
        self._tcp: Tcp | None = None

    async def serve(self, tcp: Tcp) -> None:
        """Serve one agent."""
        await upgrade(tcp)
        self._tcp = tcp
        messages = Messages(WebSocketReader(server=True, max_message=1 << 20))
        while data := await tcp.receive():
            for message in messages.feed(data):
                for type_, _, number, _, payload in frames.decode(message):
                    await self._heard(type_, number, bytes(payload))

    async def ask(self, number: int, content: dict[str, object]) -> None:
        """Send an OPEN with this payload, valid or not."""
        await self._say(frame(frames.OPEN, number, payload=json.dumps(content).encode()))

    async def _heard(self, type_: int, number: int, payload: bytes) -> None:
        if type_ == frames.HELLO:
            said = Welcome(version=1, relay="00" * 16, credit=1 << 26, spread_ms=500, opens=256, streams=1024)
            await self._say(frame(frames.WELCOME, payload=said.encode()))
        elif type_ == frames.OFFER and self.refuses is not None:
            await self._say(frame(frames.RESET, number, payload=self.refuses))
        elif type_ == frames.OFFER:
            offer = Offer.parse(payload)
            await self._say(frame(frames.OFFERED, number, payload=Offered(host=offer.host).encode()))
            self.offered.set()
        elif type_ == frames.RESET:
            self.answers.setdefault(number, Reset.parse(payload).code)
        elif type_ == frames.OPENED:
            self.answers.setdefault(number, "OPENED")

    async def _say(self, message: bytes) -> None:
        assert self._tcp is not None
        await self._tcp.send(frame_head(BINARY, len(message), None) + message)


@asynccontextmanager
async def hostile_relay() -> AsyncIterator[HostileRelay]:
    """Run a hostile relay for the duration of the block."""
    relay = HostileRelay()
    async with service(relay.serve) as running:
        relay.port = running.port
        yield relay
