"""A session as the switch sees it, whatever is at its other end: what the legs of streams need.

A session has an outbox, numbers, and credit, and its part in the process's budget. Who is at its other end is not
known here: :class:`~kdispatch_relay.switch.agents.AgentSession` adds an agent's identity. A session with another relay
adds none, and its legs are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.outbox import Outbox
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_relay.switch.budget import Bucket, Held, ProcessBudget
from kdispatch_relay.switch.effort import Effort, EffortSource

if TYPE_CHECKING:
    from kdispatch_relay.switch.attachments import Half
    from kdispatch_relay.switch.registry import ListedHost
    from kdispatch_relay.switch.routes import Leg

__all__ = ["SwitchSession"]

# What a waiting frame costs beside its bytes: a tuple, a view, its share of the queue (measured: 200-260 bytes).
_FRAME_COST = 256
# What a leg makes the relay keep, in bytes, measured, with its share of the route and its timer. It may be the only
# thing of a service, so it includes the 1.5 KiB of the service's entry, ground and account.
_LEG = 2560


class SwitchSession:
    """State only; the switch acts on it."""

    __slots__ = (
        "_gone",
        "_next_number",
        "_unsent",
        "budget",
        "credit",
        "doomed",
        "effort",
        "ended",
        "flush",
        "gones",
        "group",
        "held",
        "highest_number",
        "legs",
        "limits",
        "outbox",
        "partial",
        "queued",
        "send_fast",
        "source",
        "stalled",
    )

    def __init__(
        self,
        limits: Limits,
        budget: ProcessBudget,
        source: str,
        now: float,
        shared: EffortSource | None = None,
        *,
        group: str = "",
    ) -> None:
        self.limits = limits
        self.budget = budget
        self.source = source  # the address of its other end, for logs
        self.group = group  # what counts as one source; empty if it is not known
        #: Both are set by the gate. ``flush`` sends what waits, as far as the socket is free. ``send_fast`` sends a
        #: DATA (flags, stream, offset, payload) at once if the socket is free, and returns whether it did.
        self.flush: Callable[[], None] | None = None  # see above
        self.send_fast: Callable[[int, int, int, Buffer], bool] | None = None
        self.credit = 0  # granted by WELCOME, bytes
        self.held = 0  # bytes that it makes the relay keep, without the data that waits for it
        self._gone = False  # the session is over: it counts no more bytes
        self.partial = 0  # bytes of an incomplete message, as last noted
        self._unsent = 0  # bytes that the socket has not taken, as last noted
        self.outbox = Outbox(limits, self)
        self.legs: dict[int, Leg] = Held(self.hold, lambda _: _LEG)
        self.queued = 0  # bytes of data that wait for it
        self.stalled = False  # it let an OPEN time out and has not been heard since
        self.doomed = False  # it is to be cut
        self.ended = False
        self.effort = Effort(limits, shared)
        self.gones = Bucket(limits.gone_rate, limits.gone_rate, now)
        self.highest_number = 0  # the highest number that its other end has used
        self._next_number = 2

    def __repr__(self) -> str:
        return f"<Session of {self.source}>"

    # --- what depends on who is at its other end -----------------------------------------------

    @property
    def hosts(self) -> Iterable[ListedHost]:
        """The hosts that are reached over this session."""
        return ()

    @property
    def sends_last(self) -> bool:
        """Whether its outbox is sent after those of sessions with hosts, because it can only have clients."""
        return False

    def stream_opened(self, leg: Leg) -> None:
        """The stream of one of its legs was opened, or goes on here."""

    def remove_leg(self, leg: Leg) -> None:
        """Remove a leg: later frames with its number are ignored."""
        self.effort.leg_ended()
        self.legs.pop(leg.number, None)

    def half(self, number: int) -> Half | None:  # noqa: ARG002 - see AgentSession
        """The half that its agent attached under this number."""
        return None

    def may_answer_gone(self, number: int, now: float) -> bool:  # noqa: ARG002 - see AgentSession
        """Whether to answer DATA under a number without a leg by GONE."""
        return self.gones.take(now)

    # --- its numbers and its memory ------------------------------------------------------------

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
        self.outbox.tally = None

    def add_queued(self, size: int, frames: int) -> None:
        """Add bytes and frames that wait for it, or remove them if negative."""
        self.queued += size
        self.budget.queued += size + frames * _FRAME_COST
        assert self.queued >= 0

    @property
    def overdrawn(self) -> bool:
        """Whether pending bytes exceed what can have been granted: the session's credit and a floor per stream."""
        return self.queued > self.credit + len(self.legs) * self.limits.window_floor
