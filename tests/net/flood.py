"""Sessions that send one kind of frame without effect, as fast as possible: python -m tests.net.flood PORT KIND ...

They run in a process of their own, which prints one JSON object with the outcome of each session.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import selectors
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import decode, frame
from kdispatch_protocol.wire.identity import host_id, process_id
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Goaway, Hello, Offer, Open, Reset
from kdispatch_protocol.wire.websocket import WebSocketReader

__all__ = ["KINDS", "message", "upgraded"]

_BLOCK: Final = 64 * 1024
_TICK: Final = 0.005
_UPGRADE: Final = (
    b"GET /api/v1/tunnel HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: kdispatch.1\r\n\r\n"
)


def message(payload: bytes, first: int = 0x82) -> bytes:
    """A WebSocket frame whose mask is zero, which costs its sender nothing."""
    size = len(payload)
    if size < 126:
        return bytes((first, 0x80 | size)) + bytes(4) + payload
    if size < 65536:
        return bytes((first, 0xFE)) + struct.pack("!H", size) + bytes(4) + payload
    return bytes((first, 0xFF)) + struct.pack("!Q", size) + bytes(4) + payload


def upgraded(port: int, *, tls: bool = False) -> socket.socket:
    """A connection after its upgrade."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    sock.sendall(_UPGRADE)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        if not piece:
            raise ConnectionError("closed before the upgrade")
        head += piece
    if not head.startswith(b"HTTP/1.1 101"):
        raise ConnectionError(head.split(b"\r\n", 1)[0].decode())
    return sock


# --- what is sent -----------------------------------------------------------------------------------

#: Makes blocks of whole WebSocket frames without an end.
Blocks = Iterator[bytes]


def _repeated(one: bytes) -> Callable[[int], Blocks]:
    return lambda _: itertools.repeat(one * max(1, _BLOCK // len(one)))


def _numbered(payload: bytes, type_: int, digits: bool) -> Callable[[int], Blocks]:
    """The same frame with one number after another, in its header or, as ten ``digits``, in its payload."""
    one = message(frame(type_, 0 if digits else 1, payload=payload))
    place = one.index(b"9876543210") if digits else one.index(frame(type_, 1, payload=payload)[:8]) + 4
    count = max(1, _BLOCK // len(one))

    def blocks(_: int) -> Blocks:
        block = bytearray(one * count)
        for start in itertools.count(1_000_000_001, 2 * count):
            for index in range(count):
                at = place + index * len(one)
                number = start + 2 * index
                if digits:
                    block[at : at + 10] = b"%010d" % number
                else:
                    struct.pack_into("!I", block, at, number)
            yield bytes(block)

    return blocks


_OPEN: Final = Open(service="nobody/nothing", uuid="11" * 16, limit=65536).encode()
_ENTRY: Final = AttachEntry(
    uuid="11" * 16, service="nobody/nothing", role="client", peer="77" * 16, number=987654321, received=0,
    limit=65536, attach=1, proof="00" * 32,
)  # fmt: skip
_ATTACH: Final = Attach.of([_ENTRY]).encode().replace(b"987654321,", b"9876543210,")


def _offers(session: int) -> Blocks:
    """OFFER and WITHDRAW in turn."""
    process = process_id(secret_of(session))
    said = Offer(service="nobody/nothing", host=host_id(process, "nobody/nothing"), digest="00" * 32).encode()
    return (
        b"".join(
            message(frame(frames.OFFER, number, payload=said) + frame(frames.WITHDRAW, number))
            for number in range(start, start + 400, 2)
        )
        for start in itertools.count(1, 400)
    )


def secret_of(session: int) -> bytes:
    """The process secret of a flood's session."""
    return bytes([session + 1]) + _SECRET[1:]


_SECRET: Final = os.urandom(32)
_RESET: Final = Reset(code="cancelled", text="").encode()

#: By name: what is sent for ever, given the session's number.
KINDS: Final[dict[str, Callable[[int], Blocks]]] = {
    "ping": _repeated(message(frame(frames.PING) * 700)),
    "pong": _repeated(message(frame(frames.PONG) * 700)),
    "single pings": _repeated(message(frame(frames.PING))),
    "data of nothing": _repeated(message(frame(frames.DATA, 7, 0, b"x") * 700)),
    "ack of nothing": _repeated(message(frames.ack_frame(7, 0, 0, fin=False) * 500)),
    "fin of nothing": _repeated(message(frame(frames.FIN, 7) * 700)),
    "early of nothing": _repeated(message(frame(frames.EARLY, 7, 1 << 48, b"x") * 700)),
    "gone of nothing": _repeated(message(frame(frames.GONE, 7) * 700)),
    "withdraw of nothing": _repeated(message(frame(frames.WITHDRAW, 7) * 700)),
    "reset of nothing": _repeated(message(frame(frames.RESET, 7, payload=_RESET) * 200)),
    "open": _numbered(_OPEN, frames.OPEN, digits=False),
    "attach": _numbered(_ATTACH, frames.ATTACH, digits=True),
    "offer": _offers,
    "websocket ping": _repeated(message(b"", 0x89)),
    "websocket long ping": _repeated(message(b"x" * 125, 0x89)),
    "websocket pong": _repeated(message(b"", 0x8A)),
    "fragments": _repeated(message(b"", 0x02) + message(b"", 0x00) * 10_000 + message(frame(frames.PING), 0x80)),
    "small fragments": _repeated(
        message(b"", 0x02) + b"".join(message(bytes([byte]), 0x00) for byte in frame(frames.PING)) + message(b"", 0x80)
    ),
}


# --- one flood ---------------------------------------------------------------------------------------


@dataclass
class Flood:
    """One session that floods, and what it has received."""

    sock: socket.socket
    blocks: Blocks
    sent: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    goaway: str = ""
    close: str = ""
    reads: bool = True
    _rest: bytes = b""
    _message: bytearray = field(default_factory=bytearray)
    _reader: WebSocketReader = field(default_factory=lambda: WebSocketReader(server=False, max_message=1 << 20))

    def push(self, budget: int) -> None:
        """Send at most this many bytes."""
        while budget > 0 and self.ended is None:
            block = self._rest or next(self.blocks)
            try:
                count = self.sock.send(block[:budget])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                self._rest = block
                return
            except OSError:
                self.pull()
                self.over()
                return
            self.sent += count
            budget -= count
            self._rest = block[count:]

    def pull(self) -> None:
        """Read what the relay sends."""
        while self.reads and self.ended is None:
            try:
                data = self.sock.recv(_BLOCK)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            except OSError:
                data = b""
            if not data:
                self.over()
                return
            for piece, ends in self._reader.receive_data(data):
                self._message += piece
                if ends:
                    for type_, _, _, _, payload in decode(bytes(self._message)):
                        if type_ == frames.GOAWAY:
                            self.goaway = Goaway.parse(payload).code
                    self._message.clear()
            if self._reader.closing is not None:
                self.close = self._reader.closing.reason
                self.over()

    def over(self) -> None:
        """Whether the relay has ended it."""
        if self.ended is None:
            self.ended = time.monotonic()
            self.sock.close()


def _flood(port: int, kind: str, number: int, *, tls: bool, reads: bool) -> Flood:
    sock = upgraded(port, tls=tls)
    sock.sendall(message(frame(frames.HELLO, payload=Hello(versions=[1], secret=secret_of(number).hex()).encode())))
    sock.setblocking(False)
    return Flood(sock, KINDS[kind](number), reads=reads)


def main() -> None:
    """Run the floods, and print their outcome."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--rate", type=float, default=10e6, help="bytes a second of each")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--deaf", action="store_true", help="never read")
    given = parser.parse_args()
    floods = [
        _flood(given.port, given.kind, number, tls=given.tls, reads=not given.deaf) for number in range(given.sessions)
    ]
    print("flooding", flush=True)
    began = time.monotonic()
    with selectors.DefaultSelector():
        while (now := time.monotonic()) < began + given.seconds and any(flood.ended is None for flood in floods):
            for flood in floods:
                if flood.ended is None:
                    flood.push(int((now - flood.began) * given.rate) - flood.sent)
                    flood.pull()
            time.sleep(_TICK)
    told = [
        {
            "sent": flood.sent,
            "lasted": None if flood.ended is None else round(flood.ended - flood.began, 3),
            "code": flood.goaway or flood.close,
            "close": flood.close,
        }
        for flood in floods
    ]
    json.dump(told, sys.stdout)
    print(flush=True)


if __name__ == "__main__":
    main()
