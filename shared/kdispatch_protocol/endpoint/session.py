"""State of one session between agent and relay: its stream numbers, what may be sent, and what is queued."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kdispatch_protocol.endpoint.states import LegInput, LegState
from kdispatch_protocol.endpoint.windows import Distances
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.outbox import Outbox
from kdispatch_protocol.wire.frames import Buffer

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.streams import Stream
    from kdispatch_protocol.wire.messages import Goaway

__all__ = ["Session"]


class Session:
    """Passive state; the stream table and the endpoint act on it. An agent has a second session while it moves."""

    __slots__ = (
        "__weakref__",
        "_next_number",
        "by_number",
        "distances",
        "goaway",
        "leaving",
        "max_opens",
        "moving",
        "offered",
        "offers",
        "outbox",
        "quiet",
        "ready",
        "send_fast",
        "unanswered",
    )

    def __init__(self, limits: Limits) -> None:
        self.outbox = Outbox(limits)
        #: Send a DATA (flags, stream, offset, payload) at once if the socket is free; return whether it was sent. The
        #: driver sets this.
        self.send_fast: Callable[[int, int, int, Buffer], bool] | None = None
        self.ready = False  # the relay's WELCOME has arrived
        self.by_number: dict[int, Stream] = {}  # streams whose leg is in this session
        #: Streams that attached here while their leg is elsewhere. Nothing passes until the peer's ATTACH arrives.
        self.moving: dict[int, Stream] = {}
        self.offers: dict[int, str] = {}  # services by offer number
        self.offered: set[int] = set()  # offer numbers that the relay has confirmed
        self.unanswered = 0  # OPENs without an answer
        self.max_opens = limits.opens
        self.distances = Distances()
        self.goaway: Goaway | None = None  # the relay's latest GOAWAY
        self.leaving = False  # the agent has moved to a newer session
        self.quiet = False  # the relay knows that, and sends no more requests here
        self._next_number = 1

    @property
    def idle(self) -> bool:
        """Whether no stream is left in this session."""
        return not self.by_number and not self.moving

    def take_number(self) -> int:
        """The next stream number of this side: odd, and never reused within a session."""
        number = self._next_number
        self._next_number += 2
        return number

    def carry(self, stream: Stream, number: int, by: LegInput) -> None:
        """Put the stream's leg into this session under this number."""
        stream.carry(self, number, by)
        self.by_number[number] = stream

    def drop(self, stream: Stream) -> None:
        """Remove the stream from this session: later frames with its number are ignored, its queue is dropped."""
        if stream.leg is LegState.ASKED and stream.is_client:
            self.unanswered -= 1
        if self.by_number.get(stream.number) is stream:
            del self.by_number[stream.number]
        self.outbox.discard(stream)
        stream.leave()
