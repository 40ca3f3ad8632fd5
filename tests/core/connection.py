"""A hostile connection between an agent and a relay: bytes arrive in pieces of any size, at any time."""

from __future__ import annotations

import random
from collections.abc import Iterator

from kdispatch_protocol import websocket
from kdispatch_protocol.frames import DATA, Buffer, Frame, FrameReader, header
from kdispatch_protocol.session import Session as AgentSession
from kdispatch_relay.switch.sessions import Session
from kdispatch_relay.switch.switch import Switch

__all__ = ["Connection"]


class Wire:
    """One direction of a connection: WebSocket bytes on their way."""

    def __init__(self, *, to_server: bool) -> None:
        self.bytes = bytearray()
        self.reader = websocket.WebSocketReader(server=to_server, max_message=256 * 1024)
        self.frames = FrameReader()
        self.eats = False  # a black hole
        self._mask = b"\x1f\x2e\x3d\x4c" if to_server else None

    def put(self, parts: list[Buffer]) -> None:
        if self.eats:
            return
        payload = b"".join(websocket.mask_parts(parts, self._mask) if self._mask else parts)
        self.bytes += websocket.frame_head(websocket.BINARY, len(payload), self._mask) + payload

    def take(self, size: int) -> Iterator[list[Frame]]:
        """Frames of the next bytes, in memory that is overwritten behind them: nobody may keep a view."""
        memory = bytearray(self.bytes[:size])
        del self.bytes[:size]
        view = memoryview(memory)
        whole = self.reader.receive_whole(view, len(view))
        for piece, ends in [(whole, True)] if whole is not None else self.reader.receive_data(view):
            received = self.frames.receive(piece, ends=ends)
            if received:
                yield received
        memory[:] = b"\xdb" * len(memory)


class Connection:
    """One WebSocket: each of its sides believes in it until it notices."""

    def __init__(self, relay: Switch, session: Session, of_agent: AgentSession, chance: random.Random) -> None:
        self.relay = relay
        self.session = session
        self.of_agent = of_agent
        self.left_at: float | None = None  # when its agent has gone over to another
        self.up = Wire(to_server=True)
        self.down = Wire(to_server=False)
        self.agent_side = True
        self.relay_side = True
        self._chance = chance  # whether a socket is full
        session.send_data = self.send_data

    @property
    def full(self) -> bool:
        """Whether a socket takes no more for now; drawn anew each time."""
        return self._chance.random() < 0.4

    def send_data(self, flags: int, number: int, value: int, payload: Buffer) -> bool:
        """As a carrier does it for the relay's fast path."""
        if self.full or not self.relay_side:
            return False
        self.down.put([header(DATA, flags, number, value, len(payload)), payload])
        return True
