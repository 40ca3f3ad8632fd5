"""A stream as the relay sees it: two legs, and for each leg the frames that wait to be sent on it.

The relay is a switch. It rewrites a frame's stream number, checks credit, which is the one rule that protects others,
and passes the frame on. It grants nothing and acknowledges nothing.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.timers import Timer
from kdispatch_protocol.transitions import no_transition
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_protocol.wire.messages import Open

if TYPE_CHECKING:
    from kdispatch_relay.switch.agents import AgentSession
    from kdispatch_relay.switch.claims import Account, Ground
    from kdispatch_relay.switch.registry import ListedHost
    from kdispatch_relay.switch.sessions import SwitchSession

__all__ = ["ROUTES", "Leg", "Route", "RouteInput", "RouteState", "next_route_state"]

# Waiting DATA frames of up to SMALL bytes are gathered into runs of up to RUN bytes.
_SMALL = 1024
_RUN = 16 * 1024

#: A frame in a leg's queue: type, flags, value, payload, and when it came.
Waiting = tuple[int, int, int, Buffer, float]


class RouteState(StrEnum):
    """The state of an OPEN."""

    ASKING = "asking"  # the store is asked whether the client may open this service
    WAITING = "waiting"  # for a host to appear
    TRYING = "trying"  # one host is asked
    OPEN = "open"


class RouteInput(StrEnum):
    """What moves a route."""

    HOST_ASKED = "a host is asked"
    NO_HOST = "no host is listed"
    OPENED = "OPENED received"
    JOINED = "both ends have attached"


#: A route has no end state: the switch forgets it. A join makes a route of its own, whose OPEN was asked elsewhere.
ROUTES: Final[dict[tuple[RouteState, RouteInput], RouteState]] = {
    (RouteState.ASKING, RouteInput.HOST_ASKED): RouteState.TRYING,
    (RouteState.ASKING, RouteInput.NO_HOST): RouteState.WAITING,
    (RouteState.ASKING, RouteInput.JOINED): RouteState.OPEN,
    (RouteState.WAITING, RouteInput.HOST_ASKED): RouteState.TRYING,
    (RouteState.WAITING, RouteInput.NO_HOST): RouteState.WAITING,
    (RouteState.TRYING, RouteInput.HOST_ASKED): RouteState.TRYING,
    (RouteState.TRYING, RouteInput.OPENED): RouteState.OPEN,
}


def next_route_state(state: RouteState, by: RouteInput) -> RouteState:
    """The table's answer; raises ``LocalProtocolError`` where it has none."""
    following = ROUTES.get((state, by))
    if following is None:
        raise no_transition("route", state, by)
    return following


class Leg:
    """One end of a route: a stream number at one session, and the queue towards that session's other end.

    "This agent" below is the agent at this end of the stream. The session may lead to another relay that leads to it.
    """

    __slots__ = (
        "_ack",
        "_late_last",
        "_queue",
        "acked",
        "attach",
        "deficit",
        "fin_acked",
        "fin_passed",
        "first",
        "ground",
        "late_since",
        "limit",
        "next",
        "number",
        "peer",
        "queued",
        "reached",
        "resumed",
        "route",
        "session",
        "spoke",
    )

    def __init__(self, session: SwitchSession, number: int, route: Route, limit: int) -> None:
        self.session = session
        self.number = number
        self.route = route
        self.peer: Leg | None = None  # the other leg, once a host has opened
        self.ground: Ground | None = None  # with everything that rests on the token shown at this end
        self.limit = limit  # the last limit passed on to this agent, which may send bytes below it
        self.first = 0  # the offset of the first byte that was passed on here
        self.next = 0  # the offset of this agent's next byte
        self.acked = 0  # its peer has acknowledged all bytes below this offset: they need not be sent again
        self.attach = 0  # the attach number of the entry that was joined here
        self.resumed = False  # the next DATA is the first under this number, and may begin at a later offset
        self.fin_passed = False  # this agent's FIN was passed on
        self.fin_acked = False  # its peer has acknowledged that FIN
        self.spoke = False  # this agent has sent an ACK; the first one may repeat what is known
        self.reached = 0  # the peer's ``next`` at this agent's last ACK
        self.deficit = 0
        self.queued = False
        self._queue: deque[Waiting] | None = None  # only while something waits: an empty deque takes 760 bytes
        self.late_since: float | None = None  # since when its frames wait too long
        self._late_last = 0.0
        self._ack: tuple[int, int, bool] | None = None

    @property
    def rests(self) -> bytes | None:
        """The digest of the token that was shown at this end, also after the end."""
        return None if self.ground is None else self.ground.claim.token

    @property
    def process(self) -> str:
        """The process id of the agent at this end. The route is not over."""
        route = self.route
        if route.client is self:
            return route.opener.process
        assert route.host_entry is not None
        return route.host_entry.process

    def forward(self, type_: int, flags: int, value: int, payload: Buffer, now: float) -> None:
        """Queue a frame of the stream's data towards this leg's agent."""
        size = len(payload)
        if self._queue is None:
            self._queue = deque()
        elif size <= _SMALL and self._queue and self._merged(type_, flags, value, payload):
            self.session.add_queued(size, 0)
            return
        if isinstance(payload, memoryview) and 2 * size < memoryview(payload.obj).nbytes:
            payload = bytes(payload)  # a view would keep its whole message alive
        self._queue.append((type_, flags, value, payload, now))
        self.session.add_queued(size, 1)
        self.session.outbox.activate(self)

    def _merged(self, type_: int, flags: int, value: int, payload: Buffer) -> bool:
        """Append a small DATA to the frame that it continues: a queued frame costs far more than its few bytes."""
        assert self._queue is not None
        last_type, last_flags, last_value, last_payload, came = self._queue[-1]
        size = len(last_payload)
        if type_ != frames.DATA or last_type != frames.DATA or size > _RUN or last_value + size != value:
            return False
        run = last_payload if isinstance(last_payload, bytearray) else bytearray(last_payload)
        run += payload
        self._queue[-1] = (frames.DATA, last_flags | flags, last_value, run, came)
        return True

    def forward_ack(self, received: int, limit: int, *, fin: bool) -> None:
        """Queue an ACK towards this leg's agent. If several wait, one ACK goes out with the newest numbers."""
        if self._ack is not None:
            old_received, old_limit, old_fin = self._ack
            received, limit, fin = max(received, old_received), max(limit, old_limit), fin or old_fin
        self._ack = (received, limit, fin)
        self.limit = max(self.limit, limit)
        self.session.outbox.acknowledge(self)

    def drop_queue(self) -> None:
        """Drop what waits: the stream was reset."""
        self.drop_data()
        self._ack = None

    def drop_data(self) -> None:
        """Drop the data that waits; an ACK is still sent."""
        if self._queue:
            self.session.add_queued(-sum(len(waiting[3]) for waiting in self._queue), -len(self._queue))
        self._queue = None

    # --- a source of the session's outbox --------------------------------------------------

    def ready(self) -> bool:
        """Whether frames wait."""
        return bool(self._queue)

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:
        """Append frames until ``most`` bytes are reached or passed; returns their size in bytes.

        Frames go out whole, as they came, but not on a slow session. There, with twenty streams of 16 KiB each, a turn
        of whole frames takes a quarter of a second at 10 Mbit/s.
        """
        queue = self._queue
        cut = self.session.outbox.slow
        size = data = 0
        count = 0
        while queue and size < most:
            type_, flags, value, payload, came = queue.popleft()
            room = max(most - size, _SMALL)
            if cut and len(payload) > room and type_ == frames.DATA:
                view = memoryview(payload)
                queue.appendleft((type_, flags, value + room, view[room:], came))
                flags, payload = flags & ~frames.BLOCKED, view[:room]  # the flag belongs to the last byte
                count -= 1
            if type_ == frames.DATA and self._late(now - came, now):
                flags |= frames.MARKED
                self.session.budget.marks += 1
            parts.append(frames.header(type_, flags, self.number, value, len(payload)))
            if payload:
                parts.append(payload)
            count += 1
            data += len(payload)
            size += 16 + len(payload)
        if not queue:
            self._queue = None
        self.session.add_queued(-data, -count)
        return size

    def make_ack(self) -> bytes:
        """The ACK that waits; empty if the stream was reset meanwhile."""
        if self._ack is None:
            return b""
        received, limit, fin = self._ack
        self._ack = None
        return frames.ack_frame(self.number, received, limit, fin=fin)

    def _late(self, waited: float, now: float) -> bool:
        """Whether to mark a frame: waits have been long for some time, or memory is short."""
        limits = self.session.limits
        if waited <= limits.mark_wait:
            self.late_since = None
            return self.session.budget.tight
        if self.late_since is None or now - self._late_last > limits.mark_rest + waited:
            self.late_since = now  # a late period interrupted by a quiet gap restarts the clock
        self._late_last = now
        return now - self.late_since >= limits.mark_time or self.session.budget.tight


class Route:
    """A stream at the relay, from the client's OPEN to its end."""

    __slots__ = (
        "account",
        "attempt",
        "began",
        "client",
        "deadline",
        "early",
        "host",
        "host_entry",
        "message",
        "opener",
        "public",
        "refusal",
        "state",
        "timer",
        "tried",
    )

    def __init__(self, opener: AgentSession, number: int, message: Open) -> None:
        self.message = message
        self.state = RouteState.ASKING
        self.opener = opener  # the client's identity: its limits apply, and the stream counts as its source's
        self.client = Leg(opener, number, self, 0)
        self.host: Leg | None = None
        self.host_entry: ListedHost | None = None
        self.attempt = 0
        self.began = 0.0  # when the OPEN came
        self.deadline = 0.0  # of the whole OPEN
        self.timer: Timer | None = None  # of the current attempt or wait
        self.tried: tuple[str, ...] = ()  # host ids
        self.refusal = ("no_live_host", "")  # sent to the client when no attempt is left
        self.early: bytes | bytearray = b""  # held until the host of this attempt has opened
        self.account: Account | None = None  # the account that it counts in
        self.public = False  # whether it counts among the streams of public services

    def move(self, by: RouteInput) -> None:
        """Change the state as the table says."""
        self.state = next_route_state(self.state, by)

    def set_timer(self, timer: Timer | None) -> None:
        """Replace the timer; the one before is cancelled."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer

    def hold_early(self, attempt: int, offset: int, payload: Buffer, limits: Limits) -> bool:
        """Keep early data of the current attempt, drop another's; returns whether it was within the rules."""
        if attempt != self.attempt:
            return True
        if offset != len(self.early) or offset + len(payload) > limits.early:
            return False
        if not self.early:
            self.early = bytearray()
        self.early += payload
        self.client.session.hold(len(payload))
        return True

    def drop_early(self) -> None:
        """Drop the early data. If an attempt failed, the client sends it again for the next one."""
        self.client.session.hold(-len(self.early))
        self.early = b""
