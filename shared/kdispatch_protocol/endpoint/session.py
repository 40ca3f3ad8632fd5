"""One session of an agent's with a relay: its numbers, what may be sent in it, and what waits to be sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kdispatch_protocol.endpoint.states import Leg, LegInput
from kdispatch_protocol.endpoint.windows import Distances
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.outbox import Outbox
from kdispatch_protocol.wire.frames import Buffer

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.streams import Stream
    from kdispatch_protocol.wire.messages import Goaway

__all__ = ["Session"]


class Session:
    """Bookkeeping; the stream table and the endpoint act on it. An agent has a second one while it moves."""

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
        "send_data",
        "unanswered",
    )

    def __init__(self, limits: Limits) -> None:
        self.outbox = Outbox(limits)
        #: Sends a DATA (flags, stream, offset, payload) at once if the socket is free; returns whether it did. The
        #: driver sets it.
        self.send_data: Callable[[int, int, int, Buffer], bool] | None = None
        self.ready = False  # the relay's WELCOME was here
        self.by_number: dict[int, Stream] = {}  # those whose leg is here
        #: Attached here while their leg is another: until the peer's ATTACH nothing passes under these numbers.
        self.moving: dict[int, Stream] = {}
        self.offers: dict[int, str] = {}  # services, by the offer's number
        self.offered: set[int] = set()  # of these numbers, those that the relay lists
        self.unanswered = 0  # OPENs
        self.max_opens = limits.opens
        self.distances = Distances()
        self.goaway: Goaway | None = None  # what the relay said last
        self.leaving = False  # the agent has gone over to a newer one
        self.quiet = False  # and the relay knows: it asks nothing of this one any more
        self._next_number = 1

    @property
    def idle(self) -> bool:
        """Whether no stream is left here."""
        return not self.by_number and not self.moving

    def take_number(self) -> int:
        """The next of this side's numbers: odd, never used twice in a session."""
        number = self._next_number
        self._next_number += 2
        return number

    def carry(self, stream: Stream, number: int, by: LegInput) -> None:
        """From now on the stream has its leg here, under this number."""
        stream.carry(self, number, by)
        self.by_number[number] = stream

    def drop(self, stream: Stream) -> None:
        """Frames under the stream's number are of the past, and none of it goes out here any more."""
        if stream.leg is Leg.ASKED and stream.is_client:
            self.unanswered -= 1
        if self.by_number.get(stream.number) is stream:
            del self.by_number[stream.number]
        self.outbox.discard(stream)
        stream.leave()

    def accept_data(self, flags: int, number: int, value: int, size: int, now: float) -> Stream | None:
        """The fast path of a receiver: the stream whose next bytes a DATA has, which are to be handed to its program.

        ``None`` where there is anything else to say about it: then nothing was done, and it is a frame like others.
        """
        stream = self.by_number.get(number)
        if (
            stream is None
            or stream.leg is not Leg.JOINED
            or not stream.confirmed
            or stream.closing
            or not stream.inbound.accept_next(value, size)
        ):
            return None
        if flags or stream.inbound.grows:
            stream.inbound.note(flags, size, now)
        return stream
