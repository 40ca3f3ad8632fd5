"""A hostile connection between an agent and a relay: bytes arrive in pieces of any size, at any time."""

from __future__ import annotations

import random

from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.wire import websocket
from kdispatch_protocol.wire.frames import DATA, Buffer, Frame, FrameReader, header
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.switch import Switch

__all__ = ["Connection"]


#: First bytes with which a frame may begin.
_OPCODES = [bytes((first | opcode,)) for first in (0, 0x80) for opcode in (0, 1, 2, 8, 9, 10)]


class Wire:
    """One direction of a connection: the WebSocket bytes under way."""

    def __init__(self, *, to_server: bool) -> None:
        self.bytes = bytearray()
        self.reader = websocket.WebSocketReader(server=to_server, max_message=256 * 1024)
        self.frames = FrameReader()
        self.eats = False  # it delivers nothing: a black hole
        self.intruded = False  # a server in between has written bytes into it
        self.spoiled = False  # and the reader has found them
        self._memory = bytearray()  # the buffer of the last read
        self._ends: list[int] = []  # where messages end, among all bytes ever sent
        self._taken = 0  # how many of those bytes were delivered
        self._mask = b"\x1f\x2e\x3d\x4c" if to_server else None

    def put(self, parts: list[Buffer]) -> None:
        if self.eats:
            return
        payload = b"".join(websocket.mask_parts(parts, self._mask) if self._mask else parts)
        self.bytes += websocket.frame_head(websocket.BINARY, len(payload), self._mask) + payload
        self._ends.append(self._taken + len(self.bytes))

    def take(self, size: int) -> list[Frame]:
        """Frames of one read, in a buffer that is overwritten before the next; ``None`` if the read breaks a rule."""
        self._memory[:] = b"\xdb" * len(self._memory)
        self._memory = bytearray(self.bytes[:size])
        del self.bytes[:size]
        self._taken += len(self._memory)
        while self._ends and self._ends[0] <= self._taken:
            del self._ends[0]
        view = memoryview(self._memory)
        whole = self.reader.receive_data_fast(view, len(view))
        pieces = [(whole, True)] if whole is not None else self.reader.receive_data(view)
        received: list[Frame] = []
        try:
            for piece, ends in pieces:
                received += self.frames.receive(piece, ends=ends)
        except RemoteProtocolError:
            self.spoiled = True
        closing = self.reader.closing
        self.spoiled = self.spoiled or (closing is not None and not closing.by_peer)
        return [] if self.spoiled else received

    def intrude(self, place: int, *, more: bool) -> None:
        """A server in between writes its close frame into the data that it passes on, then ``more`` of that data.

        Two cases look valid and are left out: a close frame so near to a message's end that it completes the message,
        and a rest that looks like the head of the next message, as one in a hundred does.
        """
        close = websocket.close_payload(1001, "")
        payload = b"".join(websocket.mask_parts([close], self._mask)) if self._mask else close
        inserted = websocket.frame_head(websocket.CLOSE, len(close), self._mask) + payload
        end = next((end - self._taken for end in self._ends if end - self._taken > place), place)
        if end - place <= len(inserted):
            place = end
        rest = self.bytes[place:]
        if not more or self.bytes[end - len(inserted) :][:1] in _OPCODES:
            rest.clear()
        self.bytes[place:] = inserted + rest
        self.intruded = True


class Connection:
    """One WebSocket. Each side keeps it until it notices the loss."""

    def __init__(self, relay: Switch, session: AgentSession, of_agent: Session, chance: random.Random) -> None:
        self.relay = relay
        self.session = session
        self.of_agent = of_agent
        self.left_at: float | None = None  # when its agent has moved to another one
        self.up = Wire(to_server=True)
        self.down = Wire(to_server=False)
        self.agent_side = True
        self.relay_side = True
        self._chance = chance  # decides whether a socket is full
        session.send_fast = self.send_fast

    @property
    def full(self) -> bool:
        """Whether a socket is full now; drawn again at each call."""
        return self._chance.random() < 0.4

    def send_fast(self, flags: int, number: int, value: int, payload: Buffer) -> bool:
        """Write a DATA as a carrier does for the relay's fast path."""
        if self.full or not self.relay_side:
            return False
        self.down.put([header(DATA, flags, number, value, len(payload)), payload])
        return True
