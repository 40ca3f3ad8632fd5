"""Resumption after a loss, from section 10 of docs/protocol.md alone. It imports no kdispatch."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from .codec import BLOCKED, MAX_DATA, Closed, Frame, Session, Stream, Type, early, host_id, message
from .codec import process_id as process_of

_EARLY_MOST: Final = 16_384
_NO_NUMBER: Final = -1  # no leg yet


def key_for(secret: bytes, host: str) -> bytes:
    """The stream's key: the relay gives it to the host process, and the client computes it."""
    return hmac.new(secret, bytes.fromhex(host), hashlib.sha256).digest()


def proof(key: bytes, uuid: str, role: str, attach: int) -> str:
    return hmac.new(key, f"{uuid} {role} {attach}".encode(), hashlib.sha256).hexdigest()


#: A stream's uuid and this end's role, because a process may be both ends of a stream.
Name = tuple[str, str]
OTHER: Final = {"client": "host", "host": "client"}


@dataclass(frozen=True)
class Ended:
    """How a stream with ``peer`` ended, and whether this end had received a byte of it."""

    code: str
    peer: str
    heard: bool


class Agent:
    """A process: its secret, its current session, and its streams, which outlive sessions."""

    def __init__(self, port: int, *, token: str | None = None, service: str = "ann/web") -> None:
        self.port = port
        self.token = token
        self.service = service
        self.secret = secrets.token_bytes(32)
        self.process = process_of(self.secret)
        self.streams: dict[Name, Resuming] = {}
        self.became: dict[Name, Ended] = {}
        self._session: Session | None = None
        self._asked: asyncio.Task[None] | None = None
        self._offers = False

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in list(self.streams.values()):
            await stream.stop()
        await self.lose()

    @property
    def session(self) -> Session:
        assert self._session is not None
        return self._session

    async def connect(self, **hello: Any) -> None:
        """Start a new session, and attach all detached streams."""
        mode = "replace" if self._session else "new"
        await self.lose()
        self._session = await Session.start("127.0.0.1", self.port, self.secret, mode=mode, **hello)
        self._asked = asyncio.create_task(self._answer())
        waiting = list(self.streams.values())
        await self.attach(stream for stream in waiting if not stream.is_fresh)
        if self._offers:
            await self.offer()
        for stream in waiting:
            if stream.is_fresh:
                await stream.open()

    async def lose(self) -> None:
        """Simulate a network failure."""
        if self._asked is not None:
            self._asked.cancel()
            with suppress(asyncio.CancelledError):
                await self._asked
        if self._session is not None:
            await self._session.lose()
        for stream in list(self.streams.values()):
            if stream.answered:
                stream.detach()
            else:
                await stream.stop()
                del self.streams[stream.name]

    async def offer(self) -> None:
        self._offers = True
        number, digest = self.session.number(), secrets.token_hex(32)
        host = host_id(self.secret, self.service)
        fields = {"service": self.service, "host": host, "digest": digest, "token": self.token}
        await self.session.send(message(Type.OFFER, number, **fields))
        await self.session.next(number, Type.OFFERED)

    async def open(self, data: bytes = b"", *, window: int = 65_536) -> Resuming:
        """Open a client's stream with early data."""
        stream = Resuming(self, "client", secrets.token_hex(16), window)
        stream.secret = secrets.token_bytes(32)
        stream.keep(data)
        await stream.open()
        return stream

    async def take(self) -> tuple[Frame, Resuming | None]:
        """Return the next OPEN, and the stream that accepts it; None if it was refused."""
        asked = await self.session.accept()
        fields = asked.json
        old = self.streams.get((fields["uuid"], "host"))
        if old is not None:
            if old.peer != fields["process"] or old.joined or old.received:
                await self.session.send(message(Type.RESET, asked.stream, code="bad_request"))
                return asked, None
            await old.stop()
            # Without this RESET an entry of the old stream may wait at the relay, and the client would join that.
            await self.session.send(message(Type.RESET, old.number, code="cancelled"))
        stream = Resuming(self, "host", fields["uuid"], 65_536)
        stream.key, stream.peer = bytes.fromhex(fields["key"]), fields["process"]
        stream.move(self.session, asked.stream)
        return asked, stream

    async def accept(self, *, window: int = 65_536) -> Resuming:
        """Accept the next OPEN and answer with OPENED."""
        asked, stream = await self.take()
        assert stream is not None
        await stream.opened(asked.json, window)
        return stream

    async def attach(self, streams: Iterable[Resuming]) -> None:
        """Send ATTACH with a new number for each stream; streams with the same token share a message."""
        entries: dict[str, list[dict[str, Any]]] = {"client": [], "host": []}
        for stream in streams:
            stream.move(self.session, self.session.number())
            entries[stream.role].append(stream.entry())
        if entries["client"]:
            await self.session.send(message(Type.ATTACH, streams=entries["client"]))
        if entries["host"]:
            await self.session.send(message(Type.ATTACH, streams=entries["host"], token=self.token))

    async def _answer(self) -> None:
        """Attach streams that the relay asks for, and answer for the others how they ended."""
        session = self.session
        while (entry := await session.asked.get()) is not None:
            stream = self.streams.get((entry["uuid"], OTHER[entry["role"]]))
            if stream is None or stream.peer != entry["peer"]:
                await self._refuse(entry, self._became(entry))
            elif stream.attaching or (stream.is_of_peer(entry) and entry["attach"] <= stream.attach_taken):
                pass
            elif stream.is_of_peer(entry):
                stream.detach()
                await self.attach([stream])
            else:
                await self._refuse(entry, "bad_proof")

    def _became(self, entry: dict[str, Any]) -> str:
        ended = self.became.get((entry["uuid"], OTHER[entry["role"]]))
        if ended is None or ended.peer != entry["peer"] or (entry.get("opening") and not ended.heard):
            return "unknown_stream"
        return ended.code

    async def _refuse(self, entry: dict[str, Any], code: str) -> None:
        await self.session.send(message(Type.RESET, code=code, uuid=entry["uuid"], process=entry["peer"]))


class Resuming(Stream):
    """An end of a resumable stream. It keeps written bytes until the other end has acknowledged them."""

    def __init__(self, agent: Agent, role: str, uuid: str, window: int) -> None:
        self.agent, self.role, self.uuid = agent, role, uuid
        self.secret = b""  # only a client's end has it
        self.key = b""
        self.peer = ""  # process id of the other end
        self.opening = role == "client"
        self.answered = role == "client"  # whether a host has sent OPENED
        self.joined = False
        self.attaching = False
        self.attached = 0  # number of resumptions
        self.attach = 0  # number of the last ATTACH sent
        self.attach_taken = 0  # number of the peer's last accepted entry
        self.replayed = 0  # bytes sent again
        self._kept = bytearray()  # starts at offset `acked`
        self._next = 0  # offset of the next byte to send
        self._fin_wanted = False
        self._fin_here = False  # FIN was sent under this number
        super().__init__(agent.session, _NO_NUMBER, granted=window, limit=0)
        agent.streams[self.name] = self

    @property
    def name(self) -> Name:
        return self.uuid, self.role

    @property
    def is_fresh(self) -> bool:
        """Whether only OPEN was sent; it may be sent again."""
        return self.opening and not self.sent

    @property
    def end(self) -> int:
        """Offset after the last byte that the program wrote."""
        return self.acked + len(self._kept)

    # --- Legs

    def move(self, session: Session, number: int) -> None:
        """Use this session and number from now on."""
        before = self.session.queue(self.number)
        self.detach()
        self.session, self.number = session, number
        before.put_nowait(None)  # wakes a reader of the old queue

    def detach(self) -> None:
        self.joined = self.attaching = self._fin_here = False
        self.granted = self.received  # cancels outstanding credit
        self._due = None

    async def open(self) -> None:
        self.peer, self.sent, self._next = "", 0, 0
        self.move(self.agent.session, self.agent.session.number())
        fields = {"service": self.agent.service, "uuid": self.uuid, "limit": self.window, "secret": self.secret.hex()}
        self.granted = self.window
        await self._send(message(Type.OPEN, self.number, **fields))

    async def opened(self, fields: dict[str, Any], window: int) -> None:
        """Answer OPEN as a host."""
        self.limit, self.window, self.granted = fields["limit"], window, window
        self.joined = self.answered = True
        await self._send(message(Type.OPENED, self.number, limit=window, attempt=fields["attempt"]))

    def entry(self, **changed: Any) -> dict[str, Any]:
        """Return the stream's entry for ATTACH, and count it."""
        self.attach += 1
        self.attaching = True
        self.granted = max(self.received, self.consumed + self.window)
        self._told = self.consumed
        fields = {
            "uuid": self.uuid,
            "service": self.agent.service,
            "role": self.role,
            "peer": self.peer,
            "number": self.number,
            "received": self.received,
            "limit": self.granted,
            "fin": self.peer_finished,
            "opening": self.opening,
            "attach": self.attach,
            "proof": proof(self.key, self.uuid, self.role, self.attach),
        }
        return fields | changed

    def is_of_peer(self, entry: dict[str, Any]) -> bool:
        role = OTHER[self.role]
        return (entry["peer"], entry["service"], entry["role"]) == (
            self.peer,
            self.agent.service,
            role,
        ) and hmac.compare_digest(entry["proof"], proof(self.key, self.uuid, role, entry["attach"]))

    async def _join(self, entry: dict[str, Any]) -> None:
        if not self.is_of_peer(entry):
            await self._send(message(Type.RESET, self.number, code="bad_proof"))
            await self.agent.attach([self])
            return
        if entry["attach"] <= self.attach_taken:
            await self._send(Frame(Type.GONE, self.number))
            await self.agent.attach([self])
            return
        if entry["received"] > self.sent or (entry.get("fin") and not self._fin_sent):
            await self._refuse("offset_mismatch")
            return
        self.attach_taken = entry["attach"]
        self._acknowledged(entry["received"])
        self.replayed += self.sent - self.acked
        self._next, self.limit = self.acked, entry["limit"]
        self.finished = self.finished or bool(entry.get("fin"))
        self.joined, self.attaching, self.opening = True, False, False
        self.attached += 1
        await self._acknowledge()
        await self._pump()

    async def _told_reset(self, code: str) -> None:
        if self.attaching and self.opening and code == "unknown_stream":
            await self.open()
        elif self.attaching and self.opening and code in {"peer_restarted", "closed"}:
            self._reset = "open_interrupted"
        elif code == "closed" and self.attaching and self._fin_sent and self.peer_finished:
            self.finished = True
        else:
            self._reset = "offset_mismatch" if code == "closed" else code

    # --- Data

    def keep(self, data: bytes) -> None:
        self._kept += data

    async def write(self, data: bytes) -> None:
        self.keep(data)
        target = self.end
        await self._pump()
        await self.until(lambda: self.sent >= target)

    async def finish(self) -> None:
        self._fin_wanted = True
        await self._pump()

    async def _pump(self) -> None:
        """Send all bytes within the limit."""
        while self.joined and self._next < min(self.end, self.limit):
            most = min(self._next + MAX_DATA, self.end, self.limit)
            part = bytes(self._kept[self._next - self.acked : most - self.acked])
            data = Frame(Type.DATA, self.number, self._next, part, BLOCKED if most == self.limit else 0)
            self._next, self.sent = most, max(self.sent, most)
            await self._send(data)
        if self.joined and self._fin_wanted and self._next == self.end and not self._fin_here and not self.finished:
            self._fin_here = self._fin_sent = True
            await self._send(Frame(Type.FIN, self.number, self._next))

    def _acknowledged(self, received: int) -> None:
        if received > self.acked:
            del self._kept[: received - self.acked]
            self.acked = received
            self._next = max(self._next, received)

    def _acked(self, frame: Frame) -> None:
        self._acknowledged(frame.value)
        super()._acked(frame)

    async def _acknowledge(self) -> None:
        if self.joined:
            await super()._acknowledge()
        self._due = None

    # --- Frames

    async def _run(self) -> None:
        while self._reset is None and not (self.finished and self.peer_finished):
            await self._step()
        del self.agent.streams[self.name]
        self.agent.became[self.name] = Ended(self._reset or "closed", self.peer, self.received > 0)

    async def _step(self) -> None:
        leg = self.session, self.number
        queue = self.session.queue(self.number)
        try:
            async with asyncio.timeout_at(self._due):
                frame = await queue.get()
        except TimeoutError:
            await self._acknowledge()
            return
        if leg == (self.session, self.number):
            async with self._changed:
                await self._handle(frame)
                self._changed.notify_all()

    async def _handle(self, frame: Frame | None) -> None:
        if frame is None:
            self.detach()
        elif frame.type is Type.GONE:
            await self.agent.attach([self])
        elif frame.type is Type.RESET:
            await self._told_reset(str(frame.json["code"]))
        elif frame.type is Type.ATTACH:
            await self._join(frame.json)
        elif frame.type is Type.TRYING and self.opening:
            await self._tried(frame.json)
        elif frame.type is Type.OPENED and self.opening:
            self.limit = frame.json["limit"]
            self.joined, self.opening = True, False
            await self._acknowledge()
            await self._pump()
        else:
            await super()._handle(frame)
            await self._pump()

    async def _tried(self, fields: dict[str, Any]) -> None:
        self.peer = fields["process"]
        self.key = key_for(self.secret, self.peer)
        data = bytes(self._kept[:_EARLY_MOST])
        if data:
            await self._send(early(self.number, fields["attempt"], 0, data))
        self._next = self.sent = len(data)

    async def _refuse(self, code: str) -> None:
        self._reset = code
        await self._send(message(Type.RESET, self.number, code=code))

    async def _send(self, frame: Frame) -> None:
        # A frame lost here is sent again under the next number.
        with suppress(Closed):
            if self.session.alive:
                await self.session.send(frame)
