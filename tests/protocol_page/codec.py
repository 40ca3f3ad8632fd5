"""A second implementation of `kdispatch.1`, from docs/protocol.md and RFC 6455 alone. It imports no kdispatch."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Any, Final, Self

HEADER: Final = struct.Struct(">BBHIQ")  # kind, length (3 bytes), stream, value
MAX_OFFSET: Final = 1 << 62
MAX_MESSAGE: Final = 262_144
MAX_DATA: Final = 131_072
WAIT: Final = 5.0  # seconds for each wait


# --- Frames (section 3)


class Type(IntEnum):
    HELLO = 1
    WELCOME = 2
    OFFER = 3
    OFFERED = 4
    WITHDRAW = 5
    OPEN = 6
    TRYING = 7
    OPENED = 8
    EARLY = 9
    DATA = 10
    ACK = 11
    FIN = 12
    ATTACH = 13
    GONE = 14
    RESET = 15
    PING = 16
    PONG = 17
    GOAWAY = 18


BLOCKED: Final = 1  # in DATA
MARKED: Final = 2  # in DATA
ACK_FIN: Final = 1  # in ACK

_JSON: Final = (2, 16_384)


@dataclass(frozen=True)
class Rule:
    """A row of the table of types: ``numbered`` is None for "either", and ``value`` is the maximum."""

    length: tuple[int, int]
    numbered: bool | None
    value: int = 0
    flags: int = 0


RULES: Final[Mapping[Type, Rule]] = {
    Type.HELLO: Rule(_JSON, numbered=False),
    Type.WELCOME: Rule(_JSON, numbered=False),
    Type.OFFER: Rule(_JSON, numbered=True),
    Type.OFFERED: Rule(_JSON, numbered=True),
    Type.WITHDRAW: Rule((0, 0), numbered=True),
    Type.OPEN: Rule(_JSON, numbered=True),
    Type.TRYING: Rule(_JSON, numbered=True),
    Type.OPENED: Rule(_JSON, numbered=True),
    Type.EARLY: Rule((1, 16_384), numbered=True, value=(1 << 56) - 1),
    Type.DATA: Rule((1, MAX_DATA), numbered=True, value=MAX_OFFSET, flags=BLOCKED | MARKED),
    Type.ACK: Rule((8, 8), numbered=True, value=MAX_OFFSET, flags=ACK_FIN),
    Type.FIN: Rule((0, 0), numbered=True, value=MAX_OFFSET),
    Type.ATTACH: Rule((2, 32_768), numbered=False),
    Type.GONE: Rule((0, 0), numbered=True),
    Type.RESET: Rule(_JSON, numbered=None),
    Type.PING: Rule((0, 0), numbered=False, value=(1 << 64) - 1),
    Type.PONG: Rule((0, 0), numbered=False, value=(1 << 64) - 1),
    Type.GOAWAY: Rule(_JSON, numbered=False),
}


class ProtocolError(Exception):
    """The other end sent something that the page forbids."""


@dataclass(frozen=True)
class Frame:
    type: Type
    stream: int = 0
    value: int = 0
    payload: bytes = b""
    flags: int = 0

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.payload.decode("utf-8"))
        if not isinstance(found, dict):
            raise ProtocolError(f"{self.type.name}: no object")
        return found

    @property
    def limit(self) -> int:
        """The limit in an ACK."""
        return int.from_bytes(self.payload, "big")

    def encode(self) -> bytes:
        return raw(self.type, self.stream, self.value, self.payload, self.flags)


def raw(kind: int, stream: int = 0, value: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """Encode a frame without any check, also an invalid one."""
    length = len(payload)
    return HEADER.pack(kind << 3 | flags, length >> 16, length & 0xFFFF, stream, value) + payload


def message(kind: Type, stream: int = 0, /, **fields: Any) -> Frame:
    """Return a frame with a JSON payload."""
    return Frame(kind, stream, payload=json.dumps(fields, separators=(",", ":")).encode())


def ack(stream: int, received: int, limit: int, *, fin: bool = False) -> Frame:
    return Frame(Type.ACK, stream, received, limit.to_bytes(8, "big"), ACK_FIN if fin else 0)


def early(stream: int, attempt: int, offset: int, data: bytes) -> Frame:
    return Frame(Type.EARLY, stream, attempt << 48 | offset, data)


def decode(data: bytes) -> list[Frame]:
    """Return all frames of a message; raises ``ProtocolError``."""
    frames = []
    position = 0
    while position < len(data):
        if len(data) - position < HEADER.size:
            raise ProtocolError("the message ends inside a header")
        kind, high, low, stream, value = HEADER.unpack_from(data, position)
        position += HEADER.size
        length = high << 16 | low
        payload = data[position : position + length]
        position += length
        if len(payload) != length:
            raise ProtocolError("the message ends inside a payload")
        frames.append(_checked(kind, stream, value, payload))
    if not frames:
        raise ProtocolError("a message without a frame")
    return frames


def _checked(kind: int, stream: int, value: int, payload: bytes) -> Frame:
    if kind >> 3 not in RULES:
        raise ProtocolError(f"unknown type {kind >> 3}")
    frame = Frame(Type(kind >> 3), stream, value, payload, kind & 7)
    rule = RULES[frame.type]
    if frame.flags & ~rule.flags:
        raise ProtocolError(f"{frame.type.name}: flags {frame.flags}")
    if not rule.length[0] <= len(payload) <= rule.length[1]:
        raise ProtocolError(f"{frame.type.name}: length {len(payload)}")
    if rule.numbered is not None and rule.numbered != (stream != 0):
        raise ProtocolError(f"{frame.type.name}: stream {stream}")
    if value > rule.value:
        raise ProtocolError(f"{frame.type.name}: value {value}")
    if frame.type is Type.ACK and frame.limit > MAX_OFFSET:
        raise ProtocolError(f"ACK: limit {frame.limit}")
    return frame


# --- Identity (section 4)


def process_id(secret: bytes) -> str:
    return hashlib.sha256(secret).digest()[:16].hex()


def host_id(secret: bytes, service: str) -> str:
    return hashlib.sha256(f"kdispatch host {process_id(secret)} {service}".encode()).digest()[:16].hex()


# --- WebSocket (RFC 6455)


class Refused(Exception):
    """The server did not accept the upgrade."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(f"HTTP status {status}: {body[:200]!r}")
        self.status = status
        self.headers = headers
        self.body = body


class Closed(Exception):
    """The WebSocket's end; ``code`` is 1006 without a closing frame."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"close code {code}: {reason}")
        self.code = code
        self.reason = reason


_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocket:
    """The client's end, over a plain TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.pongs: asyncio.Queue[bytes] = asyncio.Queue()

    @classmethod
    async def connect(
        cls, host: str, port: int, path: str = "/api/v1/tunnel", *, subprotocol: str | None = "kdispatch.1"
    ) -> Self:
        reader, writer = await asyncio.open_connection(host, port)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        if subprotocol is not None:
            lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        try:
            writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii"))
            await _upgraded(reader, key, subprotocol)
        except BaseException:
            await _end(writer)
            raise
        return cls(reader, writer)

    def write(self, payload: bytes, opcode: int = _BINARY, *, fin: bool = True) -> None:
        """Send one masked WebSocket frame."""
        mask = secrets.token_bytes(4)
        size = len(payload)
        if size < 126:
            head = struct.pack(">BB", fin << 7 | opcode, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", fin << 7 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack(">BBQ", fin << 7 | opcode, 0x80 | 127, size)
        pad = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
        self._writer.write(head + mask + masked)

    async def send(self, payload: bytes) -> None:
        self.write(payload)
        await self._drain()

    async def send_text(self, text: str) -> None:
        self.write(text.encode(), _TEXT)
        await self._drain()

    async def send_fragments(self, *parts: bytes) -> None:
        for index, part in enumerate(parts):
            self.write(part, _CONTINUATION if index else _BINARY, fin=index == len(parts) - 1)
        await self._drain()

    async def send_ping(self, payload: bytes) -> None:
        self.write(payload, _PING)
        await self._drain()

    async def receive(self) -> bytes:
        """Return the next message; raises ``Closed`` at the end."""
        parts: list[bytes] = []
        while True:
            fin, opcode, payload = await self._frame()
            if opcode == _CLOSE:
                with suppress(ConnectionError):
                    self.write(payload[:2], _CLOSE)
                raise Closed(int.from_bytes(payload[:2], "big") if payload else 1005, payload[2:].decode())
            if opcode == _PING:
                self.write(payload, _PONG)
            elif opcode == _PONG:
                self.pongs.put_nowait(payload)
            elif opcode == (_CONTINUATION if parts else _BINARY):
                parts.append(payload)
                if sum(map(len, parts)) > MAX_MESSAGE:
                    raise ProtocolError("the message is too large")
                if fin:
                    return b"".join(parts)
            else:
                raise ProtocolError(f"unexpected opcode {opcode}")

    async def _frame(self) -> tuple[bool, int, bytes]:
        try:
            first, second = await self._reader.readexactly(2)
            if first & 0x70 or second & 0x80:
                raise ProtocolError("reserved bits, or a mask on the server's frame")
            size = second
            if size == 126:
                size = int.from_bytes(await self._reader.readexactly(2), "big")
            elif size == 127:
                size = int.from_bytes(await self._reader.readexactly(8), "big")
            if size > MAX_MESSAGE:
                raise ProtocolError("the frame is too large")
            return bool(first & 0x80), first & 0x0F, await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Closed(1006) from None

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except ConnectionError:
            raise Closed(1006) from None

    @property
    def closing(self) -> bool:
        return self._writer.is_closing()

    async def abort(self) -> None:
        """End the connection without a close frame; TCP sends RST if data is unread."""
        self._writer.transport.abort()
        await _end(self._writer)

    async def close(self) -> None:
        with suppress(ConnectionError, RuntimeError):  # uvloop raises RuntimeError on a closed connection
            self.write(struct.pack(">H", 1000), _CLOSE)
        await _end(self._writer)


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _upgraded(reader: asyncio.StreamReader, key: str, subprotocol: str | None) -> None:
    """Check the server's answer, section 4.1 of the RFC."""
    status, headers = _answer(await reader.readuntil(b"\r\n\r\n"))
    if status != 101:
        raise Refused(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
    accept = base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode()).digest()).decode()
    if headers.get("sec-websocket-accept") != accept or headers.get("upgrade", "").lower() != "websocket":
        raise ProtocolError("not a WebSocket's answer")
    if headers.get("sec-websocket-protocol") != subprotocol or "sec-websocket-extensions" in headers:
        raise ProtocolError("not the subprotocol, or with extensions")


def _answer(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    found = re.match(r"HTTP/1\.1 (\d{3})", first)
    if found is None:
        raise ProtocolError(f"no answer of HTTP/1.1: {first[:80]!r}")
    pairs = (line.partition(":") for line in lines)
    return int(found[1]), {name.lower(): value.strip() for name, _, value in pairs}


# --- An agent's session (sections 4 to 9)


class Session:
    """A session from HELLO to its end. Each stream's frames have a queue, so the reader never blocks."""

    def __init__(self, socket: WebSocket, secret: bytes) -> None:
        self.socket = socket
        self.secret = secret
        self.welcome: dict[str, Any] = {}
        self.close: Closed | None = None
        self.streams: list[Stream] = []
        self.deaf = False  # incoming frames are dropped
        self.ignores: Type | None = None
        self.deaf_after: Type | None = None  # frames after the next one of this type are dropped
        self._last = -1
        self._queues: dict[int, asyncio.Queue[Frame | None]] = {}
        self._opens: asyncio.Queue[Frame | None] = asyncio.Queue()
        self.asked: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # entries without a number (section 10)
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, host: str, port: int, secret: bytes | None = None, **fields: Any) -> Self:
        """Start a session; ``fields`` are additional fields of HELLO."""
        async with asyncio.timeout(WAIT):
            session = cls(await WebSocket.connect(host, port), secret or secrets.token_bytes(32))
            hello = {"versions": [1], "secret": session.secret.hex(), "agent": "second 1"} | fields
            await session.send(message(Type.HELLO, **hello))
            first, *others = decode(await session.socket.receive())
            if first.type is not Type.WELCOME:
                raise ProtocolError(f"{first.type.name} instead of WELCOME")
        session.welcome = first.json
        for frame in others:  # the relay's first message may have more frames
            await session._received(frame)
        session._reading = asyncio.create_task(session._read())
        return session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self.streams:
            await stream.stop()
        await self._stop_reading()
        await self.socket.close()

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading

    async def lose(self) -> None:
        """Simulate a network failure: no close frame, and no more reads."""
        await self._stop_reading()
        await self.socket.abort()

    @property
    def alive(self) -> bool:
        return self.close is None and not self.socket.closing

    def number(self) -> int:
        """Return a new number: an agent's numbers are odd and increase."""
        self._last += 2
        return self._last

    async def send(self, *frames: Frame) -> None:
        await self.socket.send(b"".join(frame.encode() for frame in frames))

    def queue(self, number: int) -> asyncio.Queue[Frame | None]:
        return self._queues.setdefault(number, asyncio.Queue())

    async def next(self, number: int, kind: Type) -> Frame:
        """Return the next frame with this number (0 for the session); it must have this type."""
        return await _take(self.queue(number), kind)

    async def accept(self) -> Frame:
        """Return the next OPEN from the relay."""
        return await _take(self._opens, Type.OPEN)

    def quiet(self, number: int) -> bool:
        """Whether no frame with this number waits."""
        return self.queue(number).empty()

    def no_open(self) -> bool:
        return self._opens.empty()

    async def ping(self) -> None:
        """Return when the relay has answered everything sent before."""
        value = secrets.randbits(64)
        await self.send(Frame(Type.PING, value=value))
        answer = await self.next(0, Type.PONG)
        if answer.value != value:
            raise ProtocolError("PONG with another value")

    async def ended(self) -> Closed:
        """Wait for the relay to end the session."""
        assert self._reading is not None
        async with asyncio.timeout(WAIT):
            await asyncio.shield(self._reading)
        assert self.close is not None
        return self.close

    async def _read(self) -> None:
        try:
            while True:
                for frame in decode(await self.socket.receive()):
                    if not self.deaf and frame.type is not self.ignores:
                        await self._received(frame)
                        self.deaf |= frame.type is self.deaf_after
        except Closed as closed:
            self.close = closed
        finally:
            self.asked.put_nowait(None)
            for queue in (self._opens, self.queue(0), *self._queues.values()):
                queue.put_nowait(None)

    async def _received(self, frame: Frame) -> None:
        if frame.type is Type.PING:
            await self.send(Frame(Type.PONG, value=frame.value))
        elif frame.type is Type.OPEN:
            self._opens.put_nowait(frame)
        elif frame.type is Type.ATTACH:
            self._attach(frame)
        else:
            self.queue(frame.stream).put_nowait(frame)

    def _attach(self, frame: Frame) -> None:
        """Queue an entry; one with a number keeps its order among the frames with this number."""
        for entry in frame.json["streams"]:
            if "number" in entry:
                self.queue(entry["number"]).put_nowait(message(Type.ATTACH, entry["number"], **entry))
            else:
                self.asked.put_nowait(entry)


async def _take(queue: asyncio.Queue[Frame | None], kind: Type) -> Frame:
    async with asyncio.timeout(WAIT):
        frame = await queue.get()
    if frame is None:
        raise ProtocolError(f"the session's end instead of {kind.name}")
    if frame.type is not kind:
        raise ProtocolError(f"{frame.type.name} {frame.payload[:200]!r} instead of {kind.name}")
    return frame


# --- One end of an open stream (section 7)


class Reset(Exception):
    """A RESET from either side ended the stream."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Stream:
    """Both directions after OPENED; the other end may send up to ``granted``, and this one up to ``limit``."""

    def __init__(self, session: Session, number: int, *, granted: int, limit: int, sent: int = 0) -> None:
        self.session = session
        self.number = number
        self.window = self.granted = granted
        self.limit = limit
        self.sent = sent
        self.acked = 0
        self.received = 0
        self.consumed = 0
        self.blocked = 0  # times that the writer waited for credit
        self.peer_finished = False
        self.finished = False  # the peer acknowledged our FIN
        self._told = 0  # consumed bytes at the last ACK
        self._due: float | None = None  # deadline for the next ACK
        self._fin_sent = False
        self._buffer = bytearray()
        self._reset: str | None = None
        self._changed = asyncio.Condition()
        self._running = asyncio.create_task(self._run())
        session.streams.append(self)

    async def write(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            if self.sent >= self.limit:
                self.blocked += 1
                await self.until(lambda: self.sent < self.limit)
            part = data[position : position + min(MAX_DATA, self.limit - self.sent)]
            flags = BLOCKED if self.sent + len(part) == self.limit else 0
            await self.session.send(Frame(Type.DATA, self.number, self.sent, part, flags))
            self.sent += len(part)
            position += len(part)

    async def finish(self) -> None:
        """Send FIN."""
        self._fin_sent = True
        await self.session.send(Frame(Type.FIN, self.number, self.sent))

    async def read(self, size: int = 1 << 30) -> bytes:
        """Return at least one byte, or nothing at the end."""
        await self.until(lambda: bool(self._buffer) or self.peer_finished)
        taken = bytes(self._buffer[:size])
        del self._buffer[: len(taken)]
        self.consumed += len(taken)
        if not self.peer_finished and self.consumed - self._told >= self.window // 4:
            await self._acknowledge()
        return taken

    async def read_exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = await self.read(size - len(found))
            if not part:
                raise ProtocolError("the end came early")
            found += part
        return found

    async def read_all(self) -> bytes:
        found = bytearray()
        while part := await self.read():
            found += part
        return bytes(found)

    async def closed(self) -> None:
        """Return when both directions are finished."""
        await self.until(lambda: self.finished and self.peer_finished)
        await self._running

    async def reset_code(self) -> str:
        async with asyncio.timeout(WAIT), self._changed:
            await self._changed.wait_for(lambda: self._reset is not None)
        assert self._reset is not None
        return self._reset

    async def until(self, ready: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT), self._changed:
            await self._changed.wait_for(lambda: ready() or self._reset is not None)
        if not ready():
            assert self._reset is not None
            raise Reset(self._reset)

    async def _acknowledge(self) -> None:
        self._due = None
        self._told = self.consumed
        self.granted = max(self.granted, self.consumed + self.window)
        await self.session.send(ack(self.number, self.received, self.granted, fin=self.peer_finished))

    async def _run(self) -> None:
        queue = self.session.queue(self.number)
        while self._reset is None and not (self.finished and self.peer_finished):
            try:
                async with asyncio.timeout_at(self._due):
                    frame = await queue.get()
            except TimeoutError:
                await self._acknowledge()
                continue
            async with self._changed:
                await self._handle(frame)
                self._changed.notify_all()

    async def _handle(self, frame: Frame | None) -> None:
        if frame is None:
            self._reset = "session_ended"
        elif frame.type is Type.DATA:
            await self._data(frame)
        elif frame.type is Type.ACK:
            if frame.value > self.sent or (frame.flags & ACK_FIN and not self._fin_sent):
                await self._refuse("offset_mismatch")
                return
            self._acked(frame)
        elif frame.type is Type.FIN:
            if frame.value != self.received:
                await self._refuse("offset_mismatch")
                return
            self.peer_finished = True
            await self._acknowledge()
        elif frame.type is Type.RESET:
            self._reset = str(frame.json["code"])
        elif frame.type is Type.GONE:
            self._reset = "gone"
        else:
            await self._refuse("protocol_error")

    async def _data(self, frame: Frame) -> None:
        if frame.value > self.received:
            await self._refuse("offset_mismatch")
        elif frame.value + len(frame.payload) > self.granted:
            await self._refuse("credit_exceeded")
        else:
            fresh = frame.payload[self.received - frame.value :]
            self._buffer += fresh
            self.received += len(fresh)
            if self._due is None:
                self._due = asyncio.get_running_loop().time() + 0.1

    def _acked(self, frame: Frame) -> None:
        self.acked = max(self.acked, frame.value)
        self.limit = max(self.limit, frame.limit)
        if frame.flags & ACK_FIN:
            self.finished = True

    async def _refuse(self, code: str) -> None:
        self._reset = code
        await self.session.send(message(Type.RESET, self.number, code=code))

    async def stop(self) -> None:
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
