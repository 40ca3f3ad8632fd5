"""A WebSocket as the protocol needs it: pieces of messages in, whole messages out, nothing awaited.

The upgrade was done by somebody else; a carrier is then set as the transport's
protocol. It reads into one buffer that all carriers of a loop share (one for
each would be 512 KiB per idle session). It never pauses reading because
somebody else does not read: what may wait is bounded by credit. A server's
carrier pauses for its loop's sake: after each full read others have their turn,
and reads are small while a session carries nothing, or many small frames.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Sized
from typing import Final, Protocol

from websockets.speedups import apply_mask

from kdispatch_protocol.session.aio.sockets import hold_unsent
from kdispatch_protocol.session.aio.writer import SocketWriter
from kdispatch_protocol.wire import websocket
from kdispatch_protocol.wire.frames import DATA, HEADER, Buffer
from kdispatch_protocol.wire.websocket import Closing, WebSocketReader

__all__ = ["Cancellable", "Carrier", "CarrierOwner", "read_buffer"]

# What one read of a session takes at most. Bulk at 512 KiB costs a fifth less than at 128 KiB (2.7 and 2.3 CPU seconds
# a GB), and small frames among it are found that much sooner.
_READ_SIZE: Final = 512 * 1024
# A server's least read: of frames of 20 bytes these are 400, and less than a millisecond. libuv reads up to 32 times
# for one socket before another has its turn, so a server pauses after each read that is full.
_LEAST_READ: Final = 8 * 1024
# A read with more than a frame for so many bytes is dense: the next one is small again, and waits for its turn. Above
# so many frames it is a quarter as large: messages of one byte take 8 us each.
_DENSE: Final = 1024
_MANY: Final = 128
# Behind our close frame the other end may go on sending: so many seconds lie between full reads of that.
_DISCARD_REST: Final = 0.020
_KEPT: Final = 8 * 1024 * 1024
# After our close frame the other end gets this long to answer it, in seconds.
_CLOSE_PATIENCE: Final = 2.0
# Bytes of randomness taken at once: a system call for each frame's four would cost more than the mask.
_MASKS: Final = 256
# The first byte of a DATA frame without flags, and the heads of the WebSocket messages that hold one DATA and nothing
# else, by its size: up to what a head of two bytes can tell of.
_KIND: Final = DATA << 3
_SHORT: Final = 125 - 16
_HEADS: Final = [websocket.frame_head(websocket.BINARY, 16 + size, None) for size in range(_SHORT + 1)]
_MASKED_HEADS: Final = [websocket.frame_head(websocket.BINARY, 16 + size, b"") for size in range(_SHORT + 1)]


def read_buffer() -> memoryview:
    """Make a buffer for reading, to be shared by everything that reads on one event loop."""
    _keep_freed_memory()
    return memoryview(bytearray(_READ_SIZE))


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed of blocks below 8 MiB, instead of giving it back and asking for it anew.

    It moves its thresholds (mmap, and trimming at twice that) to the largest mapped block that was ever freed;
    before, each read of 128 KiB moved the heap's end, and its pages were cleared again: a tenth of a bulk
    sender's time. The block is never touched, so it costs no memory.
    """
    block = bytearray(_KEPT)
    del block


class Cancellable(Protocol):
    """A call that is to come, and need not."""

    def cancel(self) -> None:
        """Let it not come."""
        ...


class CarrierOwner(Protocol):
    """Who uses a carrier. Calls come from the event loop and must not block."""

    def piece_received(self, piece: Buffer, *, ends: bool) -> None:
        """A piece of a message, and whether the message ends with it. At a client its memory is reused afterwards."""
        ...

    def bytes_received(self) -> None:
        """All pieces of one read were handed over."""
        ...

    def carrier_idle(self, count: int) -> None:
        """So many WebSocket frames, or reads, brought no byte of a message."""
        ...

    def carrier_takes(self, size: int) -> bool:
        """Whether so many bytes may be sent at once, as far as the owner is asked."""
        ...

    def carrier_filled(self) -> None:
        """The socket takes no more for now."""
        ...

    def carrier_drained(self) -> None:
        """What was written is gone; more may be sent."""
        ...

    def carrier_lost(self, closing: Closing | None, error: Exception | None) -> None:
        """The connection is gone: after a close frame, or just so."""
        ...


def _pass_nothing_on(flags: int, number: int, value: int, payload: Buffer) -> bool:  # noqa: ARG001
    return False


class Carrier(asyncio.BufferedProtocol):
    """One WebSocket connection after its handshake. ``server`` says which end this is.

    Two fast paths are here, for a stream that is not bulk. A read that is a whole short DATA and nothing else goes to
    ``pass_on`` in one step (:meth:`buffer_updated`), and such a DATA is sent in one (:meth:`send_data`).
    """

    def __init__(
        self,
        owner: CarrierOwner,
        *,
        server: bool,
        buffer: memoryview,
        max_message: int,
        carries: Sized | None = None,
        turn: Callable[[Callable[[], None]], Cancellable] | None = None,
    ) -> None:
        """``carries`` is what a server's session carries: as long as it is empty, reads are small. Agents give none.

        ``turn`` calls a function when a session of many small frames is to read again; if not given, in the next turn
        of the loop.
        """
        self._owner: CarrierOwner = owner
        self._server = server
        self._shared = buffer
        self._carries: Sized = (None,) if carries is None else carries
        self._paces = carries is not None
        self._least = buffer[:_LEAST_READ]
        self._turn = turn
        self._view = self._least if self._paces else buffer  # where a session that carries something reads to
        self._rest: Cancellable | None = None  # ends the pause of reading
        self._reader = WebSocketReader(server=server, max_message=max_message)
        self._transport: asyncio.Transport | None = None
        self._writer: SocketWriter | None = None
        self._masks: list[bytes] = []  # for the next frames
        self._silent = False  # a close frame was sent, or the connection is being aborted: nothing goes behind that
        self._time = asyncio.get_running_loop().time
        self._killer: asyncio.TimerHandle | None = None
        self.given = 0  #: bytes that the transport was given in all
        self.full = False  #: the socket takes no more for now; wait for ``carrier_drained``
        self.heard: float | None = None  #: when bytes arrived last; who looks at it sets it back
        self.arrived: float | None = None  #: when a piece of a message did, likewise
        self.sent: float | None = None  #: when a client sent a message last, likewise
        self.found = 0  #: frames found in this read; the owner counts them
        #: Takes the flags, stream, offset and payload of a DATA that came alone, and returns whether it did; if not,
        #: nothing was done, and the DATA goes to the owner. A client's payload is in memory that is reused.
        self.pass_on: Callable[[int, int, int, Buffer], bool] = _pass_nothing_on

    def attach(self, transport: asyncio.Transport, early: bytes = b"") -> None:
        """Take over ``transport``; ``early`` is what its former protocol had read already."""
        self._transport = transport
        self._writer = SocketWriter(transport)
        # Told at once when more than a byte is left over, and when all is gone. Not 0: TLS transports of asyncio
        # call themselves full at the mark, plain ones above it, and an empty one would be full for ever.
        transport.set_write_buffer_limits(high=1, low=0)
        transport.set_protocol(self)
        if not transport.is_reading():
            transport.resume_reading()
        if early:
            self._read(early)

    @property
    def unsent(self) -> int:
        """Bytes that the socket has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    @property
    def open(self) -> bool:
        """Whether messages can still be sent."""
        return self._transport is not None and not self._silent

    def hold_unsent(self, size: int) -> None:
        """Let the kernel hold no more than about ``size`` bytes that have not left yet."""
        if self._transport is not None:
            hold_unsent(self._transport.get_extra_info("socket"), size)

    def limit_messages(self, size: int) -> None:
        """From now on take messages of up to ``size`` bytes."""
        self._reader.max_message = size

    def rest(self, seconds: float) -> None:
        """Read nothing for so many seconds, or until the loop's next turn."""
        loop = asyncio.get_running_loop()
        self._pause(functools.partial(loop.call_later, seconds) if seconds else loop.call_soon)

    def _pause(self, later: Callable[[Callable[[], None]], Cancellable]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._rest is not None:
            self._rest.cancel()
        else:
            transport.pause_reading()
        self._rest = later(self._rested)

    def _rested(self) -> None:
        self._rest = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, parts: list[Buffer]) -> None:
        """Send one binary message made of ``parts``, which may be reused afterwards."""
        self.sent = self._time()
        self._write(websocket.BINARY, parts)

    def send_data(self, flags: int, number: int, value: int, payload: Buffer) -> bool:
        """Send one DATA at once, as a message of its own, if the socket is free; returns whether that was done.

        Only where the outbox is empty, or what waits there is overtaken. The payload may be reused afterwards.
        """
        writer = self._writer
        size = len(payload)
        if writer is None or self.full or self._silent:
            return False
        message = HEADER.pack((_KIND | flags) << 24 | size, number, value)
        if size > _SHORT:
            if not self._owner.carrier_takes(size):
                return False
            self.send([message, payload])
            return True
        message += payload
        if self._server:
            message = _HEADS[size] + message
        else:
            self.sent = self._time()
            mask = self._masks.pop() if self._masks else self._next_mask()
            message = _MASKED_HEADS[size] + mask + apply_mask(message, mask)
        self.given += len(message)
        writer.write_one(message)
        return True

    def close(self, code: int, reason: str) -> None:
        """Say goodbye; the connection ends when the other end answers, or after a moment."""
        if self._transport is None or self._silent:
            return
        self._write(websocket.CLOSE, [websocket.close_payload(code, reason)])
        self._fall_silent()
        self._killer = asyncio.get_running_loop().call_later(_CLOSE_PATIENCE, self.abort)

    def abort(self) -> None:
        """End the connection at once."""
        self._fall_silent()
        if self._transport is not None:
            self._transport.abort()

    def _fall_silent(self) -> None:
        self._silent = True
        self.pass_on = _pass_nothing_on  # the owner sees for itself what to do with what still arrives

    def _write(self, opcode: int, parts: list[Buffer]) -> None:
        writer = self._writer
        if writer is None or self._silent:
            return
        size = sum(map(len, parts))
        if self._server:
            head = websocket.frame_head(opcode, size, None)
        else:
            mask = self._next_mask()
            head = websocket.frame_head(opcode, size, mask)
            parts = websocket.mask_parts(parts, mask)
        size += len(head)
        self.given += size
        writer.write([head, *parts], size)

    def _next_mask(self) -> bytes:
        """Four unpredictable bytes (RFC 6455, 5.3), of which the system is asked for many at once."""
        if not self._masks:
            random = os.urandom(_MASKS)
            self._masks = [random[at : at + 4] for at in range(0, _MASKS, 4)]
        return self._masks.pop()

    # --- asyncio.BufferedProtocol ---------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where to read to."""
        return self._view if self._carries else self._least

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes are there."""
        message = self._reader.receive_whole(self._shared, nbytes)
        if message is None:
            if self._reader.closing is None:
                self._read(self._shared[:nbytes])
            if nbytes >= _LEAST_READ // 4 and self._paces:
                self._give_turn(nbytes)
            return
        self.heard = self.arrived = self._time()
        size = len(message) - 16
        if size > 0:
            word, number, value = HEADER.unpack_from(message)
            flags = (word >> 24) - _KIND
            if 0 <= flags <= 3 and word & 0xFFFFFF == size and self.pass_on(flags, number, value, message[16:]):
                return
        self._owner.piece_received(message, ends=True)
        self._owner.bytes_received()

    def _give_turn(self, size: int) -> None:
        """Choose the next read's size, and let others have their turn behind a full read."""
        full = size == len(self.get_buffer(-1))
        dense = size < self.found * _DENSE
        if dense:
            self._view = self._least[: _LEAST_READ // 4] if self.found > _MANY else self._least
        elif full and len(self._view) < len(self._shared):
            self._view = self._shared[: 2 * len(self._view)]
        if not full or self._rest is not None:
            return
        if dense and self._turn is not None and not self._silent:
            self._pause(self._turn)
        else:
            self.rest(_DISCARD_REST if self._silent else 0.0)

    def _read(self, data: Buffer) -> None:
        reader = self._reader
        self.heard = self._time()
        self.found = 0
        piece = None
        pieces = reader.receive_data(data)
        # Where bytes of a stranger's are in between, nothing of the read is what the other end sent. It sends it again.
        if reader.closing is not None and not reader.closing.by_peer:
            pieces = []
        for piece, ends in pieces:
            self._owner.piece_received(piece, ends=ends)
        if piece is not None:
            self.arrived = self.heard
        elif not reader.idle:
            reader.idle = 1  # not even a whole head: bytes that dribble
        if reader.idle:
            idle, reader.idle = reader.idle, 0
            self.found += idle
            self._owner.carrier_idle(idle)
        if reader.pings:
            # The latest is enough (RFC 6455, 5.5.3), and none to one who does not read.
            if not self.full:
                self._write(websocket.PONG, [reader.pings[-1]])
            reader.pings.clear()
        self._owner.bytes_received()
        closing = reader.closing
        if closing is None or self._transport is None:
            return
        if not self._silent:
            self.close(closing.code, closing.reason)
        if closing.by_peer:  # both close frames are there, or on their way: RFC 6455, 7.1.1
            self._transport.close()

    def pause_writing(self) -> None:
        """The socket is full."""
        self.full = True
        self._owner.carrier_filled()

    def resume_writing(self) -> None:
        """The socket took everything."""
        self.full = False
        self._owner.carrier_drained()

    def eof_received(self) -> bool:
        """The other end will send no more; without its close frame that is a loss."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        for handle in (self._killer, self._rest):
            if handle is not None:
                handle.cancel()
        self._transport = self._writer = None
        self._owner.carrier_lost(self._reader.closing, exc)
