"""One end of a stream: its state, its two halves, and the frames it makes."""

from __future__ import annotations

from typing import NamedTuple

from kdispatch_protocol.endpoint.replay import Outbound
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.states import (
    END_STATES,
    SENDING,
    Input,
    LegInput,
    LegState,
    State,
    next_leg,
    next_state,
)
from kdispatch_protocol.endpoint.windows import CreditBudget, Inbound
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.timers import Timer
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_protocol.wire.identity import proof, stream_key

__all__ = ["Farewell", "Stream"]


class Farewell(NamedTuple):
    """How to reset a stream once the peer has everything that its program wrote."""

    code: str
    text: str
    credited_to: int  # the peer's bytes below this offset are credited, though no program takes them


# More than 25 methods: each change of a field is a method of its own.
class Stream:
    """The client's or the host's end of a stream. It belongs to an endpoint, whose methods act on it.

    ``number`` is its number in ``session``, or 0, and ``leg`` says what may pass
    under that number. While the stream moves it has further numbers in ``moves``,
    under which nothing passes yet. The stream is a source of its session's outbox:
    it cuts frames from its replay buffer when its turn comes, so no byte is queued
    twice. Only the methods of this class write its fields, except ``queued`` and
    ``deficit``, which the outbox writes.
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
        self.token = token  # the token that authorizes the stream
        self.pin = pin  # client: the id of the only host to ask, or empty
        self.secret = secret  # client: 32 bytes; without a secret the stream can't be resumed
        self.key = key  # host: see `stream_key`
        self.limits: Limits = budget.limits
        self.inbound = Inbound(budget)
        self.outbound = Outbound()
        self.outbound.limit = limit
        self.state = State.OPENING
        self.session = session  # the session of its leg; arbitrary while it has no leg
        self.number = number
        self.leg = LegState.NONE
        self.moves: dict[Session, int] | None = None  # further sessions it attached in, oldest first, with its numbers
        self.attach = 0  # number of our last ATTACH
        self.peer_attach = 0  # number of the peer's last accepted ATTACH
        self.attempt = attempt  # the relay's attempt that this end belongs to
        self.peer = peer  # process id of the other end
        self.host = ""  # host id, once the relay has named it
        self.confirmed = is_client  # whether a frame of the peer has shown that it has the stream, too
        self.closing = False  # the program closed; the next data that arrives is answered with a reset
        self.farewell: Farewell | None = None  # the program has ended, and the peer lacks bytes
        self.unheard = False  # with a farewell: the program's last bytes are not all written yet
        self.writer_paused = False
        self.drained: list[Stream] | None = None  # list to join when a paused writer has few unsent bytes
        self.ack_timer: Timer | None = None  # deadline for acknowledging received bytes
        self.timer: Timer | None = None  # the one deadline of its state
        self.grace: Timer | None = None  # the deadline while it is detached
        self.detached_at = 0.0  # when it was detached
        self.asked_at = 0.0  # when OPEN, or a host's OPENED, was sent: the answer tells the distance
        self.asked_until = 0.0  # client: deadline for the relay's answer to its OPEN
        self.open_until = open_until  # client: do not open again after this
        self.deficit = 0  # owned by the outbox
        self.queued = False  # owned by the outbox

    def __repr__(self) -> str:
        return f"<Stream {self.uuid[:8]} {self.service} {'client' if self.is_client else 'host'} {self.state.value}>"

    @property
    def ended(self) -> bool:
        """Whether the stream is in an end state."""
        return self.state in END_STATES

    @property
    def role(self) -> str:
        """The role of this end, as ATTACH names it."""
        return "client" if self.is_client else "host"

    @property
    def opened(self) -> bool:
        """Whether the host's service took the connection, as far as this end knows."""
        return self.state not in {State.OPENING, State.TRYING}

    @property
    def in_doubt(self) -> bool:
        """Client: whether the stream is joined, and its host has not shown yet that it has the stream."""
        return self.leg is LegState.JOINED and not self.opened

    @property
    def said(self) -> bool:
        """Whether the peer has every byte that the program wrote, and its end if it wrote one."""
        out = self.outbound
        return out.base == out.end and (out.fin_acked or not out.eof) and not self.unheard

    @property
    def carried(self) -> int:
        """Bytes transferred both ways: received in order, or acknowledged by the peer."""
        return self.inbound.received + self.outbound.base

    @property
    def movable(self) -> bool:
        """Whether both ends know that the stream is open, and may move it to another session."""
        return self.leg is LegState.ATTACHING or (self.leg is LegState.JOINED and self.confirmed and self.resumable)

    @property
    def resumable(self) -> bool:
        """Whether both ends can prove who they are to each other."""
        return bool((self.secret if self.is_client else self.key) and self.peer)

    def prove(self, role: str, attach: int) -> str:
        """The proof for ATTACH number ``attach`` of this stream by the end with this role."""
        key = stream_key(self.secret, self.peer) if self.is_client else self.key
        return proof(key, self.uuid, role, attach)

    # --- deadlines --------------------------------------------------------------------

    def detach(self, timer: Timer, now: float) -> None:
        """Start the grace: the stream waits until both ends have attached, or until ``timer`` fires."""
        self.end_grace()
        self.grace, self.detached_at = timer, now

    def end_grace(self) -> None:
        """End the grace: the stream is attached, or over."""
        if self.grace is not None:
            self.grace.cancel()
            self.grace = None

    def set_timer(self, timer: Timer | None) -> None:
        """Replace the deadline of the state."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer

    def set_ack_timer(self, timer: Timer | None) -> None:
        """The stream's bytes are acknowledged when ``timer`` fires at the latest. The caller cancels an earlier one."""
        self.ack_timer = timer

    # --- its state --------------------------------------------------------------------

    def move(self, by: Input) -> None:
        """Change the state as the table says."""
        self.state = next_state(self.state, by)

    def tried(self, attempt: int, peer: str, host: str) -> None:
        """The relay asks this host now. It dropped the early data for the previous host."""
        self.move(Input.TRIED)
        self.attempt, self.peer, self.host = attempt, peer, host
        self.outbound.restart()

    def untried(self) -> None:
        """No host got anything of the stream. The next OPEN starts from byte 0, with the limit of its session."""
        if self.state is State.TRYING:
            self.move(Input.UNTRIED)
        self.peer = self.host = ""
        self.confirmed = True
        self.outbound.restart()
        self.inbound.release()

    def confirm(self) -> None:
        """The peer was heard in the leg: it has the stream, too."""
        self.confirmed = True

    def doubt(self) -> None:
        """Client: the relay joined the stream, of which no host has said yet that it has it."""
        self.confirmed = False

    def close(self, farewell: Farewell | None = None) -> None:
        """The program is gone. With a ``farewell`` the stream is reset once the peer has all bytes of the program."""
        self.closing = True
        self.farewell = farewell

    def expect(self, *, more: bool) -> None:
        """Say whether more bytes of the program are still to be written after :meth:`close`."""
        self.unheard = more

    def pause_writer(self) -> None:
        """The program must not write until few of its bytes are pending."""
        self.writer_paused = True

    def resume_writer(self) -> None:
        """The program may write again."""
        self.writer_paused = False

    def report_to(self, drained: list[Stream]) -> None:
        """Append this stream to ``drained`` when few bytes of a paused writer are pending."""
        self.drained = drained

    # --- its legs ---------------------------------------------------------------------

    def carry(self, session: Session, number: int, by: LegInput) -> None:
        """The leg is in ``session`` from now on, under this number."""
        self.session, self.number = session, number
        self.move_leg(by)

    def leave(self) -> None:
        """Give up the number. The leg is lost."""
        self.number = 0
        self.move_leg(LegInput.LOST)

    def move_leg(self, by: LegInput) -> None:
        """Change the leg as the table says."""
        self.leg = next_leg(self.leg, by)

    def asked(self, now: float, until: float = 0.0) -> None:
        """An OPEN, or a host's OPENED, goes out at ``now``. The relay answers an OPEN by ``until``."""
        self.asked_at, self.asked_until = now, until

    def attach_anew(self) -> int:
        """Count one more ATTACH of this end. Returns its number."""
        self.attach += 1
        return self.attach

    def peer_attached(self, attach: int) -> None:
        """The peer's ATTACH with this number was accepted. Earlier ones are refused from now on."""
        self.peer_attach = attach

    def add_move(self, session: Session, number: int) -> None:
        """The stream also attaches in ``session``, under this number."""
        if self.moves is None:
            self.moves = {}
        self.moves[session] = number
        session.moving[number] = self

    def end_move(self, session: Session) -> None:
        """Give up the number of the move to ``session``."""
        assert self.moves is not None
        del session.moving[self.moves.pop(session)]
        if not self.moves:
            self.moves = None

    def end_moves(self, session: Session) -> list[tuple[Session, int]]:
        """Give up the number of the move to ``session`` and all older ones; returns the older ones, oldest first."""
        older = []
        for other, number in list((self.moves or {}).items()):
            self.end_move(other)
            if other is session:
                break
            older.append((other, number))
        return older

    # --- a source of the outbox ------------------------------------------------------

    def ready(self) -> bool:
        """Whether DATA, early data or FIN could be sent now."""
        out = self.outbound
        if self.leg is LegState.JOINED and self.state in SENDING:
            sent = out.sent
            if sent < out.end:
                return sent < out.limit
            return out.eof and not out.fin_sent
        return self.leg is LegState.ASKED and self.state is State.TRYING and out.sent < min(out.end, self.limits.early)

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:  # noqa: ARG002 - the relay's lanes need `now`
        """Append the next frames to ``parts``; returns their size in bytes."""
        if not self.ready():  # it may have been detached while it was queued
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
        """Append early data for the current attempt. The relay holds it until that host has opened."""
        out = self.outbound
        out.limit = max(out.limit, self.limits.early)  # the first limit is at least the floor, which equals this
        place = len(parts)
        offset = out.sent
        count = out.take(self.limits.early - offset, parts)
        if not count:
            return 0
        value = frames.early_value(self.attempt, offset)
        parts.insert(place, frames.header(frames.EARLY, 0, self.number, value, count))
        return 16 + count

    def make_ack(self) -> bytes:
        """The newest ACK; empty after a reset, or while nothing may pass."""
        if self.state is State.RESET or self.leg is not LegState.JOINED:
            return b""
        inbound = self.inbound
        limit = inbound.grant()
        return frames.ack_frame(self.number, inbound.received, limit, fin=inbound.final is not None)
