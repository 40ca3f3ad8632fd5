"""A minimal session for measurements: each PING is sent alone, and received data is recorded at once."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from typing import Final

from websockets.speedups import apply_mask

from kdispatch.network.dialer import Upgraded
from kdispatch.settings import version
from kdispatch_protocol.errors import KdispatchError, RemoteProtocolError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import FrameReader
from kdispatch_protocol.wire.messages import QUIET, Goaway, Hello, Welcome
from kdispatch_protocol.wire.websocket import BINARY, CLOSE, WebSocketReader, close_payload, frame_head

__all__ = ["QUIET", "ProbeSession"]

_MESSAGE_MAX: Final = 256 * 1024


class ProbeSession(asyncio.Protocol):
    """A session after the upgrade. ``over`` is done when the connection is gone, and gives the reason."""

    def __init__(self, upgraded: Upgraded) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._transport = upgraded.transport
        self._messages = WebSocketReader(server=False, max_message=_MESSAGE_MAX)
        self._frames = FrameReader()
        self._waiting: dict[int, asyncio.Future[float]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self.welcome: asyncio.Future[Welcome] = loop.create_future()
        self.over: asyncio.Future[str] = loop.create_future()
        self.began = loop.time()
        self.unreadable = False  # it ended because the received data broke the rules
        self.received = 0  #: bytes so far
        self.answered = 0  #: PONGs so far
        self._heard = asyncio.Event()
        self._transport.set_protocol(self)
        if upgraded.early:
            self.data_received(upgraded.early)
        self._transport.resume_reading()

    def greet(self, *capabilities: str) -> None:
        """Send HELLO as a new process."""
        agent = f"kdispatch-doctor/{version()}"
        hello = Hello(versions=[1], secret=secrets.token_hex(32), capabilities=list(capabilities), agent=agent)
        self.send(frames.frame(frames.HELLO, payload=hello.encode()))

    def send(self, message: bytes) -> None:
        """Send whole frames as one message."""
        self._send(BINARY, message)

    def _send(self, opcode: int, payload: bytes) -> None:
        if self._transport.is_closing():  # uvloop raises an error where asyncio drops the data
            return
        mask = os.urandom(4)
        self._transport.write(frame_head(opcode, len(payload), mask) + apply_mask(payload, mask))

    async def ping(self, seconds: float) -> float | None:
        """The round trip of a single PING, in seconds; ``None`` without an answer in time, or if the session ends."""
        value = secrets.randbits(63)
        answer = self._waiting[value] = self._loop.create_future()
        began = time.perf_counter()  # uvloop's time has only milliseconds
        self.send(frames.frame(frames.PING, value=value))
        ends: set[asyncio.Future[float] | asyncio.Future[str]] = {answer, self.over}
        try:
            await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() - began if answer.done() else None
        finally:
            del self._waiting[value]

    async def flood(self, count: int) -> int:
        """Send ``count`` PINGs in one message, once the last ones have left; returns the bytes."""
        await self._writable.wait()
        message = frames.frame(frames.PING) * count
        self.send(message)
        return len(message)

    async def hears(self, seconds: float) -> bool:
        """Wait at most ``seconds`` until something arrives; returns whether it did."""
        self._heard.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Send a close frame and close the connection. It is safe to call this again."""
        self._send(CLOSE, close_payload(1000, ""))
        self._transport.close()

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Handle received bytes."""
        self.received += len(data)
        self._heard.set()
        try:
            for piece, ends in self._messages.receive_data(data):
                for type_, _, _, value, payload in self._frames.receive(piece, ends=ends):
                    self._frame(type_, value, payload)
        except RemoteProtocolError as error:
            self.unreadable = True
            self._end(error.text)
            self._transport.abort()
        if (closing := self._messages.closing) is not None:
            self.unreadable = self.unreadable or not closing.by_peer
            self._end(f"closed with {closing.code} {closing.reason}".rstrip())
            self._transport.close()

    def _frame(self, type_: int, value: int, payload: memoryview) -> None:
        if type_ == frames.WELCOME and not self.welcome.done():
            self.welcome.set_result(Welcome.parse(payload))
        elif type_ == frames.PONG:
            self.answered += 1
            if (answer := self._waiting.get(value)) is not None and not answer.done():
                answer.set_result(time.perf_counter())
        elif type_ == frames.PING:
            self.send(frames.frame(frames.PONG, value=value))
        elif type_ == frames.GOAWAY:
            said = Goaway.parse(payload)
            error = KdispatchError.from_wire(said.code, said.text)
            self._end(f"the relay said {error}")

    def pause_writing(self) -> None:
        """The socket is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The socket has room again."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._end(str(exc) if exc is not None else "the connection was closed")
        self._heard.set()
        self._writable.set()

    def _end(self, why: str) -> None:
        if not self.over.done():
            self.over.set_result(why)
