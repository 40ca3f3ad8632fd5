"""What a session needs of the connection that carries it: whole messages, in order, both ways, nothing awaited.

A link is given a carrier and knows no more of the connection than this interface. The WebSocket is the one carrier
today; another one needs a class with these methods, and no change of a link, the gate or an agent's uplink.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kdispatch_protocol.wire.frames import Buffer
from kdispatch_protocol.wire.websocket import Closing

__all__ = ["Cancellable", "Carrier", "CarrierOwner", "MakeCarrier"]


class Cancellable(Protocol):
    """A pending call that can be cancelled."""

    def cancel(self) -> None:
        """Cancel the call."""
        ...


class CarrierOwner(Protocol):
    """The user of a carrier. Its methods run in the event loop and must not block."""

    def receive_piece(self, piece: Buffer, *, ends: bool) -> None:
        """Handle a piece of a message; ``ends`` marks the last. A client's piece is in memory that is reused."""
        ...

    def receive_end(self) -> None:
        """All pieces of one read were delivered."""
        ...

    def receive_message(self, message: Buffer) -> None:
        """Handle a read that was one whole message: the same as its piece and the end of the read, in one call."""
        ...

    def handle_idle(self, count: int) -> None:
        """``count`` WebSocket frames, or reads, brought no byte of a message."""
        ...

    def may_send(self, size: int) -> bool:
        """Whether the owner allows to send this many bytes at once."""
        ...

    def handle_filled(self) -> None:
        """The socket is full."""
        ...

    def handle_drained(self) -> None:
        """Everything written has been sent; the owner may send more."""
        ...

    def handle_lost(self, closing: Closing | None, error: Exception | None) -> None:
        """The connection is gone. ``closing`` is set if a close frame or a violation ended it."""
        ...


class Carrier(Protocol):
    """One connection. Times are those of the loop's clock, sizes are bytes."""

    given: int  #: total bytes given to the connection
    full: bool  #: the connection takes no more; wait for ``handle_drained``
    heard: float | None  #: when bytes arrived last; its reader resets it
    arrived: float | None  #: when a piece of a message arrived last; its reader resets it
    sent: float | None  #: when a client sent a message last; its reader resets it
    found: int  #: frames found in this read; the owner counts them
    #: Takes flags, stream, offset and payload of a DATA that came alone, and returns whether it handled the DATA.
    read_fast: Callable[[int, int, int, Buffer], bool]

    @property
    def unsent(self) -> int:
        """Bytes that the connection has not taken."""
        ...

    @property
    def open(self) -> bool:
        """Whether messages can still be sent."""
        ...

    def start(self) -> None:
        """Begin to read. Messages may be sent from then on."""
        ...

    def send(self, parts: list[Buffer]) -> int:
        """Send one message made of ``parts``, which may be reused afterwards; returns its size."""
        ...

    def send_fast(self, flags: int, number: int, value: int, payload: Buffer) -> bool:
        """Fast path of :meth:`send`: send one DATA at once, if the connection is free; returns whether it was sent."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Say why, and end the connection in order. The code is a WebSocket close code."""
        ...

    def abort(self) -> None:
        """End the connection at once."""
        ...

    def hold_unsent(self, size: int) -> None:
        """Limit the unsent bytes in the kernel to about ``size``."""
        ...

    def limit_messages(self, size: int) -> None:
        """From now on accept messages of up to ``size`` bytes."""
        ...

    def rest(self, seconds: float) -> None:
        """Read nothing for so many seconds; 0 waits for the next turn of the loop."""
        ...


#: Makes a carrier for its owner, which starts it.
MakeCarrier = Callable[[CarrierOwner], Carrier]
