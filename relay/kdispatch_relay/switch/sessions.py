"""One agent's session as the switch sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.outbox import Outbox
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_relay.switch.asks import Asks
from kdispatch_relay.switch.budget import Bucket, Chances, Held, Joined, ProcessBudget
from kdispatch_relay.switch.effort import Effort, EffortSource

if TYPE_CHECKING:
    from kdispatch_relay.switch.attachments import Half
    from kdispatch_relay.switch.registry import LiveOffer
    from kdispatch_relay.switch.routes import Leg

__all__ = ["Shared", "SwitchSession"]

# What a waiting frame costs beside its bytes: a tuple, a view, its share of the queue (measured: 200-260 bytes).
_FRAME_COST = 256
# What a session makes the relay keep, in bytes, measured: a leg with its share of the route and its timer; a half with
# its entry and its places in three tables; an offer beside its labels. Each may be the only one of a service, so it
# includes the 1.5 KiB of the service's entry, ground and account.
_LEG = 2560
_HALF = 2816
_OFFER = 2560
_LABEL = 120
# While an offer is looked up, it counts with all the labels and the token that its frame has room for.
_ASKED_OFFER = 8 * 1024
# A waiting control frame costs this much beside its bytes.
_CONTROL = 64
# Names of services whose streams an agent has opened. When there are more, all are forgotten, and the audit notes each
# of them again.
_CONNECTS = 1024


class Shared(Chances, EffortSource, Protocol):
    """The buckets that all sessions of a source share: the rate of failures, and the rate of requests."""


class SwitchSession:
    """State only; the switch acts on it. ``process`` is empty until HELLO."""

    __slots__ = (
        "_gone",
        "_next_number",
        "_unsent",
        "asked",
        "asking",
        "asks",
        "budget",
        "connects",
        "credit",
        "doomed",
        "effort",
        "ended",
        "failures",
        "flush",
        "gones",
        "group",
        "halves",
        "held",
        "highest_number",
        "legs",
        "limits",
        "look_ups",
        "offers",
        "offers_asked",
        "older",
        "outbox",
        "partial",
        "predecessors",
        "process",
        "queued",
        "quiet",
        "rank",
        "resets",
        "send_fast",
        "source",
        "stalled",
        "streams",
        "streams_opened",
        "unanswered",
    )

    def __init__(
        self,
        limits: Limits,
        budget: ProcessBudget,
        source: str,
        now: float,
        shared: Shared | None = None,
        *,
        group: str = "",
    ) -> None:
        self.limits = limits
        self.budget = budget
        self.source = source  # the agent's address, for logs
        self.group = group  # what counts as one source; empty if it is not known
        #: Both are set by the gate. ``flush`` sends what waits, as far as the socket is free. ``send_fast`` sends a
        #: DATA (flags, stream, offset, payload) at once if the socket is free, and returns whether it did.
        self.flush: Callable[[], None] | None = None  # see above
        self.send_fast: Callable[[int, int, int, Buffer], bool] | None = None
        self.process = ""
        self.connects: set[str] | None = None  # services whose streams its agent has opened
        self.quiet = False  # it carries nothing, and may be silent for longer
        self.older: SwitchSession | None = None  # the session of the same agent that it is moving from
        self.rank = 0  # of two sessions of a process, the one that greeted later has the higher rank
        self.credit = 0  # granted by WELCOME, bytes
        self.held = 0  # bytes that it makes the relay keep, without the data that waits for it
        self._gone = False  # the session is over: it counts no more bytes
        self.partial = 0  # bytes of an incomplete message, as last noted
        self._unsent = 0  # bytes that the socket has not taken, as last noted
        self.outbox = Outbox(limits, self._hold_control)
        self.predecessors: tuple[str, ...] = ()  # process ids that this process has proved to replace
        self.legs: dict[int, Leg] = Held(self.hold, lambda _: _LEG)
        self.asking: dict[str, Leg] = {}  # its legs of streams that no host has opened yet, by uuid
        self.streams: dict[tuple[str, str], Leg] = {}  # its legs of running streams, by uuid and role
        #: Streams that this agent attached, and whose other end is not here yet.
        self.halves: dict[int, Half] = Held(self.hold, lambda _: _HALF)
        self.offers_asked = 0  # offers that are looked up, also those withdrawn meanwhile
        #: ``None`` while the offer is looked up.
        self.offers: dict[int, LiveOffer | None] = Held(self.hold, _weigh_offer)
        self.queued = 0  # bytes of data that wait for this agent
        self.unanswered = 0
        self.streams_opened = 0  # live legs of streams that this agent opened
        self.stalled = False  # it let an OPEN time out and has not been heard since
        self.doomed = False  # it is to be cut
        self.ended = False
        own = Bucket(limits.failed_opens_rate, limits.failed_opens_burst, now)
        self.failures: Chances = own if shared is None else Joined(own, shared)
        self.effort = Effort(limits, shared)
        self.resets = Bucket(limits.early_resets_rate, limits.early_resets_burst, now)
        self.asks = Bucket(limits.asks_rate, limits.asks_burst, now)
        self.asked = Asks(limits.attach_batch)  # asks this agent about other agents' halves
        self.look_ups = 0  # pending look-ups for its halves
        self.gones = Bucket(limits.gone_rate, limits.gone_rate, now)
        self.highest_number = 0  # the highest number that the agent has used
        self._next_number = 2

    @property
    def all_of_agent(self) -> Iterator[SwitchSession]:
        """This session, and those that its agent is moving from."""
        session: SwitchSession | None = self
        while session is not None:
            yield session
            session = session.older

    def is_first_of(self, service: str) -> bool:
        """Whether its agent has opened no stream of the service before. Notes the service."""
        if self.connects is None:
            self.connects = set()
        if service in self.connects:
            return False
        if len(self.connects) >= _CONNECTS:
            self.connects.clear()
        self.connects.add(service)
        return True

    def __repr__(self) -> str:
        return f"<Session {self.process[:8] or 'new'} of {self.source}>"

    def take_number(self) -> int:
        """The next of the relay's numbers: even, and never used twice in a session."""
        number = self._next_number
        self._next_number += 2
        return number

    @property
    def weight(self) -> int:
        """Bytes of all that the relay keeps because of this session."""
        return self.queued + self.held

    def hold(self, size: int) -> None:
        """Add ``size`` bytes (negative: remove) to what it makes the relay keep, without the data that waits for it."""
        if not self._gone:
            self.held += size
            self.budget.held += size

    def ask_offer(self, count: int) -> None:
        """Note that ``count`` more offers are looked up, or fewer if it is negative."""
        self.offers_asked += count
        self.hold(count * _ASKED_OFFER)

    def _hold_control(self, size: int, frames: int) -> None:
        if not self._gone:  # as hold(), with one call less: an open takes six of these
            size += frames * _CONTROL
            self.held += size
            self.budget.held += size

    def note_partial(self, size: int) -> None:
        """Note the bytes received of a message that is not complete."""
        self.hold(size - self.partial)
        self.partial = size

    def note_unsent(self, size: int) -> None:
        """Note the bytes that its socket has not taken."""
        self.hold(size - self._unsent)
        self._unsent = size

    def let_go(self) -> None:
        """The session is over. The rest of its memory goes with its connection, and is counted no longer."""
        self.hold(-self.held)
        self._gone = True

    def add_queued(self, size: int, frames: int) -> None:
        """Add bytes and frames that wait for this agent, or remove them if negative."""
        self.queued += size
        self.budget.queued += size + frames * _FRAME_COST
        assert self.queued >= 0

    @property
    def overdrawn(self) -> bool:
        """Whether pending bytes exceed what the agent can have granted: the session's credit and a floor per stream."""
        return self.queued > self.credit + len(self.legs) * self.limits.window_floor


def _weigh_offer(offer: LiveOffer | None) -> int:
    if offer is None:
        return 0  # counted by ask_offer() while it is looked up
    return _OFFER + sum(_LABEL + len(key) + len(value) for key, value in offer.labels.items())
