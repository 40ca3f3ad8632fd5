"""One end of a stream: its state, its two halves, and the frames it makes of them."""

from __future__ import annotations

from typing import NamedTuple

from kdispatch_protocol.endpoint.replay import Outbound
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.states import END_STATES, SENDING, Input, Leg, LegInput, State, next_leg, next_state
from kdispatch_protocol.endpoint.windows import CreditBudget, Inbound
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.timers import Timer
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_protocol.wire.identity import proof, stream_key

__all__ = ["Farewell", "Stream"]


class Farewell(NamedTuple):
    """How a stream is reset once the peer has all that its program said."""

    code: str
    text: str
    credited_to: int  # bytes of the peer's below this offset are credited, though no program takes them


# More than 25 methods: every change of a field is one, and stands here.
class Stream:
    """A client's or a host's end. It belongs to an endpoint, whose methods act on it.

    ``number`` is its number in ``session``, 0 while it has none, and ``leg``
    says what may pass under it. Only the methods here write fields, but for the
    two that are the outbox's. While it moves it has numbers in ``moves``
    besides, under which nothing passes yet. As a source of its session's
    outbox it cuts frames from its replay buffer when its turn comes, so nothing
    is queued twice.
    """

    __slots__ = (
        "__weakref__",
        "ack_timer",
        "asked_at",
        "asked_until",
        "attach",
        "attempt",
        "closing",
        "confirmed",
        "deficit",
        "detached_at",
        "drained",
        "farewell",
        "grace",
        "host",
        "inbound",
        "is_client",
        "key",
        "leg",
        "limits",
        "moves",
        "number",
        "open_until",
        "outbound",
        "peer",
        "peer_attach",
        "pin",
        "queued",
        "secret",
        "service",
        "session",
        "state",
        "timer",
        "token",
        "unheard",
        "uuid",
        "writer_paused",
    )

    def __init__(
        self,
        *,
        uuid: str,
        service: str,
        is_client: bool,
        budget: CreditBudget,
        session: Session,
        token: str | None = None,
        secret: bytes = b"",
        pin: str = "",
        number: int = 0,
        attempt: int = 0,
        peer: str = "",
        key: bytes = b"",
        limit: int = 0,
        open_until: float = 0.0,
    ) -> None:
        self.uuid = uuid
        self.service = service
        self.is_client = is_client
        self.token = token  # what the stream rests on
        self.pin = pin  # a client's: the id of the one host that is to be asked, if only one
        self.secret = secret  # a client's, 32 bytes; without one a stream can't be resumed
        self.key = key  # a host's; see `stream_key`
        self.limits: Limits = budget.limits
        self.inbound = Inbound(budget)
        self.outbound = Outbound()
        self.outbound.limit = limit
        self.state = State.OPENING
        self.session = session  # the one of its leg; while it has none, any
        self.number = number
        self.leg = Leg.NONE
        self.moves: dict[Session, int] | None = None  # where it is attached besides, and its number there, oldest first
        self.attach = 0  # our last ATTACH's number
        self.peer_attach = 0  # that of the peer's last one that was taken
        self.attempt = attempt  # which try of the relay's this is about
        self.peer = peer  # process id of the other end
        self.host = ""  # host id, once the relay has named one
        self.confirmed = is_client  # a host's end: the client was heard after OPENED
        self.closing = False  # the program closed; data that still arrives is answered by a reset
        self.farewell: Farewell | None = None  # its program has ended, and the peer lacks bytes of it
        self.unheard = False  # with a farewell: more of what the program said is yet to be written
        self.writer_paused = False
        self.drained: list[Stream] | None = None  # where to report that a paused writer's bytes became few
        self.ack_timer: Timer | None = None  # when its bytes are acknowledged at the latest
        self.timer: Timer | None = None  # the one deadline that its state has
        self.grace: Timer | None = None  # the one that it has while it is detached
        self.detached_at = 0.0  # since when that is
        self.asked_at = 0.0  # when OPEN, or a host's OPENED, went out: its answer tells how far the peer is
        self.asked_until = 0.0  # a client: the relay has answered its OPEN by then
        self.open_until = open_until  # a client: it is not opened again after this
        self.deficit = 0  # the outbox's
        self.queued = False  # the outbox's

    def __repr__(self) -> str:
        return f"<Stream {self.uuid[:8]} {self.service} {'client' if self.is_client else 'host'} {self.state.value}>"

    @property
    def ended(self) -> bool:
        """Nothing more happens here."""
        return self.state in END_STATES

    @property
    def role(self) -> str:
        """This end's, as ATTACH names it."""
        return "client" if self.is_client else "host"

    @property
    def opened(self) -> bool:
        """A host's service took the connection, as far as is known here."""
        return self.state not in {State.OPENING, State.TRYING}

    @property
    def said(self) -> bool:
        """Whether the peer has every byte that the program wrote, and its end if it wrote one."""
        out = self.outbound
        return out.base == out.end and (out.fin_acked or not out.eof) and not self.unheard

    @property
    def carried(self) -> int:
        """Bytes that have got across, both ways: received in order, or acknowledged by the peer."""
        return self.inbound.received + self.outbound.base

    @property
    def movable(self) -> bool:
        """Whether the two ends know that it is open, and may take it to another session."""
        return self.leg is Leg.ATTACHING or (self.leg is Leg.JOINED and self.confirmed and self.resumable)

    @property
    def resumable(self) -> bool:
        """Whether the two ends can prove themselves to each other."""
        return bool((self.secret if self.is_client else self.key) and self.peer)

    def prove(self, role: str, attach: int) -> str:
        """The proof of this stream's ATTACH number ``attach`` by the end that has this role."""
        key = stream_key(self.secret, self.peer) if self.is_client else self.key
        return proof(key, self.uuid, role, attach)

    # --- deadlines --------------------------------------------------------------------

    def detach(self, timer: Timer, now: float) -> None:
        """The stream waits for both ends to attach, until ``timer`` fires."""
        self.end_grace()
        self.grace, self.detached_at = timer, now

    def end_grace(self) -> None:
        """The stream is not detached any more."""
        if self.grace is not None:
            self.grace.cancel()
            self.grace = None

    def set_timer(self, timer: Timer | None) -> None:
        """A new deadline replaces the one before."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer

    def set_ack_timer(self, timer: Timer | None) -> None:
        """The stream's bytes are acknowledged when ``timer`` fires at the latest. The caller cancels an earlier one."""
        self.ack_timer = timer

    # --- its state --------------------------------------------------------------------

    def move(self, by: Input) -> None:
        """Let the table change the state."""
        self.state = next_state(self.state, by)

    def tried(self, attempt: int, peer: str, host: str) -> None:
        """The relay asks this host now. It dropped what was meant for the host before."""
        self.move(Input.TRIED)
        self.attempt, self.peer, self.host = attempt, peer, host
        self.outbound.restart()

    def untried(self) -> None:
        """No host has anything of the stream: it is to be opened anew, with whatever the next session grants."""
        if self.state is State.TRYING:
            self.move(Input.UNTRIED)
        self.peer = self.host = ""
        self.outbound.restart()
        self.inbound.release()

    def confirm(self) -> None:
        """A host's end: the client was heard."""
        self.confirmed = True

    def close(self, farewell: Farewell | None = None) -> None:
        """The program is gone. With a ``farewell`` the stream is reset once the peer has all that the program said."""
        self.closing = True
        self.farewell = farewell

    def expect(self, *, more: bool) -> None:
        """Whether more of what the program said is yet to be written, behind its farewell."""
        self.unheard = more

    def pause_writer(self) -> None:
        """The program writes no more until its bytes have become few."""
        self.writer_paused = True

    def resume_writer(self) -> None:
        """The program may write again."""
        self.writer_paused = False

    def report_to(self, drained: list[Stream]) -> None:
        """Put this stream into ``drained`` whenever a paused writer's bytes have become few."""
        self.drained = drained

    # --- its legs ---------------------------------------------------------------------

    def carry(self, session: Session, number: int, by: LegInput) -> None:
        """From now on the leg is in ``session``, under this number."""
        self.session, self.number = session, number
        self.move_leg(by)

    def leave(self) -> None:
        """The stream gives its number up."""
        self.number = 0
        self.move_leg(LegInput.LOST)

    def move_leg(self, by: LegInput) -> None:
        """Let the table change the leg."""
        self.leg = next_leg(self.leg, by)

    def asked(self, now: float, until: float = 0.0) -> None:
        """An OPEN, or a host's OPENED, goes out. The relay answers the former by ``until``."""
        self.asked_at, self.asked_until = now, until

    def attach_anew(self) -> int:
        """Count one more ATTACH of this end; returns its number."""
        self.attach += 1
        return self.attach

    def peer_attached(self, attach: int) -> None:
        """The peer's ATTACH of this number is taken: earlier ones are not any more."""
        self.peer_attach = attach

    def add_move(self, session: Session, number: int) -> None:
        """The stream attaches in ``session`` besides, under this number."""
        if self.moves is None:
            self.moves = {}
        self.moves[session] = number
        session.moving[number] = self

    def end_move(self, session: Session) -> None:
        """The stream gives up its number of a move to ``session``."""
        assert self.moves is not None
        del session.moving[self.moves.pop(session)]
        if not self.moves:
            self.moves = None

    # --- a source of the outbox ------------------------------------------------------

    def ready(self) -> bool:
        """Whether DATA, early data or FIN could go out now."""
        out = self.outbound
        if self.leg is Leg.JOINED and self.state in SENDING:
            return out.sent < min(out.end, out.limit) or (out.eof and not out.fin_sent and out.sent == out.end)
        return self.leg is Leg.ASKED and self.state is State.TRYING and out.sent < min(out.end, self.limits.early)

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:  # noqa: ARG002 - a lane of the relay needs `now`
        """Append the next frames to ``parts``; returns their size in bytes."""
        if not self.ready():  # it may have been detached while it waited for its turn
            return 0
        if self.state is State.TRYING:
            return self._pull_early(parts)
        out = self.outbound
        size = 0
        while size < most and out.sent < min(out.end, out.limit):
            place = len(parts)
            offset = out.sent
            count = out.take(min(self.limits.data, most - size), parts)
            flags = frames.BLOCKED if out.sent == out.limit else 0
            parts.insert(place, frames.header(frames.DATA, flags, self.number, offset, count))
            size += 16 + count
        if out.eof and not out.fin_sent and out.sent == out.end:
            parts.append(frames.frame(frames.FIN, self.number, out.end))
            out.fin_sent = True
            self.move(Input.FIN_SENT)
            size += 16
        if self.writer_paused and self.drained is not None and out.unsent <= self.limits.unsent // 2:
            self.drained.append(self)
        return size

    def _pull_early(self, parts: list[Buffer]) -> int:
        """Early data, for the try that the relay named; it is held there until that host has opened."""
        out = self.outbound
        out.limit = max(out.limit, self.limits.early)  # every first limit is at least the floor, which this is
        place = len(parts)
        offset = out.sent
        count = out.take(self.limits.early - offset, parts)
        if not count:
            return 0
        value = frames.early_value(self.attempt, offset)
        parts.insert(place, frames.header(frames.EARLY, 0, self.number, value, count))
        return 16 + count

    def make_ack(self) -> bytes:
        """The newest ACK; nothing when the stream ended by a reset."""
        if self.state is State.RESET or self.leg is not Leg.JOINED:
            return b""
        inbound = self.inbound
        limit = inbound.grant()
        return frames.ack_frame(self.number, inbound.received, limit, fin=inbound.finished)
