"""A WebSocket connection for the protocol: pieces of messages in, whole messages out, nothing awaited.

Other code does the upgrade and then sets a carrier as the transport's protocol.
All carriers of a loop read into one shared buffer, because a buffer for each
would be 512 KiB per idle session. A carrier never pauses reading because of a
slow consumer: credit bounds what is pending. A server's carrier pauses for the
sake of its loop: after each full read others have their turn. Its reads are
small while a session carries nothing, or many small frames.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Sized
from typing import Final

from websockets.speedups import apply_mask

from kdispatch_protocol.session.aio.carrier import Cancellable, CarrierOwner
from kdispatch_protocol.session.aio.sockets import hold_unsent
from kdispatch_protocol.session.aio.writer import SocketWriter
from kdispatch_protocol.wire import websocket
from kdispatch_protocol.wire.frames import DATA, HEADER, Buffer
from kdispatch_protocol.wire.websocket import WebSocketReader

__all__ = ["WebSocketCarrier", "read_buffer"]

# Largest read of a session. Bulk at 512 KiB costs 15 % less than at 128 KiB (2.3 and 2.7 CPU seconds a GB), and
# small frames within it are found that much sooner.
_READ_SIZE: Final = 512 * 1024
# A server's smallest read: 400 frames of 20 bytes, which take less than a millisecond. libuv reads up to 32 times from
# one socket before the next one's turn, so a server pauses after each full read.
_LEAST_READ: Final = 8 * 1024
# A read is dense if it has more than one frame per this many bytes: the next read is small again, and waits for its
# turn. Above 128 frames it is a quarter as large: messages of one byte take 8 us each.
_DENSE: Final = 1024
_MANY: Final = 128
# After our close frame the other end may go on sending: pause this many seconds after each full read of that.
_DISCARD_REST: Final = 0.020
_KEPT: Final = 8 * 1024 * 1024
# After our close frame the other end has this many seconds to answer it.
_CLOSE_PATIENCE: Final = 2.0
# Bytes of randomness per system call: one call for the four bytes of each frame would cost more than masking.
_MASKS: Final = 256
# Messages of up to this size are joined: a copy of 2 KiB costs less than another part.
_JOINED: Final = 2048
# The first byte of a DATA frame without flags. The heads of WebSocket messages that hold one DATA and nothing else, by
# the size of its payload, up to what a head of two bytes can express.
_KIND: Final = DATA << 3
_SHORT: Final = 125 - 16
_HEADS: Final = [websocket.frame_head(websocket.BINARY, 16 + size, None) for size in range(_SHORT + 1)]
_MASKED_HEADS: Final = [websocket.frame_head(websocket.BINARY, 16 + size, b"") for size in range(_SHORT + 1)]


def read_buffer() -> memoryview:
    """Make the read buffer that everything on one event loop shares."""
    _keep_freed_memory()
    return memoryview(bytearray(_READ_SIZE))


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks below 8 MiB instead of returning them and requesting them again.

    glibc moves its thresholds (mmap, and trimming at twice that) to the largest mapped block that was ever freed.
    Before that, each read of 128 KiB moved the end of the heap, and its pages were cleared again: a tenth of a bulk
    sender's time. The block is never touched, so it costs no memory.
    """
    block = bytearray(_KEPT)
    del block


def _pass_nothing_on(flags: int, number: int, value: int, payload: Buffer) -> bool:  # noqa: ARG001
    return False


class WebSocketCarrier(asyncio.BufferedProtocol):
    """One WebSocket connection after its handshake. ``server`` says which end this is.

    It has two fast paths for streams that are not bulk. A read of exactly one short DATA goes to ``read_fast`` in one
    step (:meth:`buffer_updated`), and such a DATA is sent in one step (:meth:`send_fast`).
    """

    def __init__(
        self,
        owner: CarrierOwner,
        *,
        server: bool,
        buffer: memoryview,
        max_message: int,
        transport: asyncio.Transport | None = None,
        early: bytes = b"",
        carries: Sized | None = None,
        turn: Callable[[Callable[[], None]], Cancellable] | None = None,
    ) -> None:
        """``transport`` is taken over by :meth:`start`, and ``early`` is what its former protocol has already read.

        ``carries`` is what a server's session carries: while it is empty, reads are small. Agents pass ``None``.

        ``turn`` schedules the next read of a session with many small frames; by default that is the next turn of the
        loop.
        """
        self._owner: CarrierOwner = owner
        self._server = server
        self._shared = buffer
        self._carries: Sized = (None,) if carries is None else carries
        self._paces = carries is not None
        self._least = buffer[:_LEAST_READ]
        self._turn = turn
        self._view = self._least if self._paces else buffer  # where a session that carries something reads to
        self._rest: Cancellable | None = None  # ends a pause of reading
        self._reader = WebSocketReader(server=server, max_message=max_message)
        self._begin = (transport, early)
        self._transport: asyncio.Transport | None = None
        self._writer: SocketWriter | None = None
        self._masks: list[bytes] = []  # for the next frames
        self._silent = False  # a close frame was sent, or the connection is being aborted: send nothing more
        self._time = asyncio.get_running_loop().time
        self._killer: asyncio.TimerHandle | None = None
        self.given = 0  #: total bytes given to the transport
        self.open = False  #: messages can be sent: it has a transport, and has not fallen silent
        self.full = False  #: the socket is full; wait for ``handle_drained``
        self.heard: float | None = None  #: when bytes arrived last; its reader resets it
        self.arrived: float | None = None  #: when a piece of a message arrived last; its reader resets it
        self.sent: float | None = None  #: when a client sent a message last; its reader resets it
        self.found = 0  #: frames found in this read; the owner counts them
        #: Takes flags, stream, offset and payload of a DATA that came alone, and returns whether it handled the DATA.
        #: If not, nothing was changed, and the DATA goes to the owner. A client's payload is in memory that is reused.
        self.read_fast: Callable[[int, int, int, Buffer], bool] = _pass_nothing_on

    def start(self) -> None:
        """Take over the transport that this was made with."""
        transport, early = self._begin
        self._begin = (None, b"")
        assert transport is not None, "made without a transport: attach one"
        self.attach(transport, early)

    def attach(self, transport: asyncio.Transport, early: bytes = b"") -> None:
        """Take over ``transport``; ``early`` is what its former protocol has already read."""
        self._transport = transport
        self._writer = SocketWriter(transport)
        self.open = not self._silent
        # Notify when more than one byte is left over, and when all is gone. Not 0: asyncio's TLS transports are full at
        # the mark, plain ones above it, and with 0 an empty one would be full for ever.
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

    def hold_unsent(self, size: int) -> None:
        """Limit the unsent bytes in the kernel to about ``size``."""
        if self._transport is not None:
            hold_unsent(self._transport.get_extra_info("socket"), size)

    def limit_messages(self, size: int) -> None:
        """From now on accept messages of up to ``size`` bytes."""
        self._reader.max_message = size

    def rest(self, seconds: float) -> None:
        """Read nothing for this many seconds; 0 means until the loop's next turn."""
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

    def send(self, parts: list[Buffer]) -> int:
        """Send one binary message made of ``parts``, which may be reused afterwards; returns its size."""
        self.sent = self._time()
        return self._write(websocket.BINARY, parts)

    def send_fast(self, flags: int, number: int, value: int, payload: Buffer) -> bool:
        """Fast path of :meth:`send`, for one DATA: send it at once, if the socket is free; returns whether it was sent.

        Call this only if the outbox is empty, or if the DATA may overtake it. If not sent, queue it for a batch. The
        payload may be reused afterwards. Same as ``send``:
        tests/aio/test_either_way.py::test_a_carrier_sends_the_same_either_way
        """
        writer = self._writer
        size = len(payload)
        if writer is None or self.full or self._silent:
            return False
        message = HEADER.pack((_KIND | flags) << 24 | size, number, value)
        if size > _SHORT:
            if not self._owner.may_send(size):
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
        writer.write_fast(message)
        return True

    def close(self, code: int, reason: str) -> None:
        """Send a close frame. The connection ends when the other end answers, or after two seconds."""
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
        self.open = False
        self.read_fast = _pass_nothing_on  # from now on the owner handles what still arrives

    def _write(self, opcode: int, parts: list[Buffer]) -> int:
        writer = self._writer
        if writer is None or self._silent:
            return 0
        length = sum(map(len, parts))
        mask = None if self._server else self._masks.pop() if self._masks else self._next_mask()
        head = websocket.frame_head(opcode, length, mask)
        size = length + len(head)
        self.given += size
        if length > _JOINED:
            parts = parts if mask is None else websocket.mask_parts(parts, mask)
            writer.write([head, *parts], size)
        else:
            payload = b"".join(parts)
            writer.write_fast(head + (payload if mask is None else apply_mask(payload, mask)))
        return length

    def _next_mask(self) -> bytes:
        """Four unpredictable bytes (RFC 6455, 5.3), taken from a larger batch of system randomness."""
        if not self._masks:
            random = os.urandom(_MASKS)
            self._masks = [random[at : at + 4] for at in range(0, _MASKS, 4)]
        return self._masks.pop()

    # --- asyncio.BufferedProtocol ---------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """The buffer for the next read."""
        return self._view if self._carries else self._least

    def buffer_updated(self, nbytes: int) -> None:
        """Handle the bytes of a read. The fast path stands here, the general one in :meth:`_read`; it says the same.

        tests/aio/test_short_messages.py::test_what_is_passed_on_is_what_was_said
        """
        message = self._reader.receive_data_fast(self._shared, nbytes)
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
            if 0 <= flags <= 3 and word & 0xFFFFFF == size and self.read_fast(flags, number, value, message[16:]):
                return
        self._owner.receive_message(message)

    def _give_turn(self, size: int) -> None:
        """Choose the size of the next read, and pause after a full read so that others have their turn."""
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
        # After a violation nothing in this read is trusted, as foreign bytes may be in it. The other end sends it
        # again.
        if reader.closing is not None and not reader.closing.by_peer:
            pieces = []
        for piece, ends in pieces:
            self._owner.receive_piece(piece, ends=ends)
        if piece is not None:
            self.arrived = self.heard
        elif not reader.idle:
            reader.idle = 1  # not even a complete head: bytes that trickle in
        if reader.idle:
            idle, reader.idle = reader.idle, 0
            self.found += idle
            self._owner.handle_idle(idle)
        if reader.pings:
            # Answering the latest PING is enough (RFC 6455, 5.5.3). A peer that does not read gets no answer.
            if not self.full:
                self._write(websocket.PONG, [reader.pings[-1]])
            reader.pings.clear()
        self._owner.receive_end()
        closing = reader.closing
        if closing is None or self._transport is None:
            return
        if not self._silent:
            self.close(closing.code, closing.reason)
        if closing.by_peer:  # both close frames were sent or received: RFC 6455, 7.1.1
            self._transport.close()

    def pause_writing(self) -> None:
        """The socket is full."""
        self.full = True
        self._owner.handle_filled()

    def resume_writing(self) -> None:
        """The socket took everything."""
        self.full = False
        self._owner.handle_drained()

    def eof_received(self) -> bool:
        """The other end sends no more; without its close frame this counts as a loss."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        for handle in (self._killer, self._rest):
            if handle is not None:
                handle.cancel()
        self._transport = self._writer = None
        self.open = False
        self._owner.handle_lost(self._reader.closing, exc)
