"""All streams of one agent process: the commands of programs, and what frames change. ``resume.py`` has lost legs.

``endpoint.py`` has the other half of an agent's protocol: what arrives from the relay. Everything here is bookkeeping:
it changes tables, and queues frames and events. The caller then does what :class:`Endpoint` says.
"""

from __future__ import annotations

from collections.abc import Callable

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.deadlines import Deadlines
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.farewells import Farewells
from kdispatch_protocol.endpoint.resume import Resumption
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.states import SENDING, Input, LegInput, LegState, State
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.endpoint.tombstones import Tombstones
from kdispatch_protocol.endpoint.windows import CreditBudget
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.outbox import Outbox
from kdispatch_protocol.session.timers import Timers
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_protocol.wire.messages import Open, Opened, printable, reset_frame

__all__ = ["StreamTable"]

#: Smallest read in bytes, because a read of a socket can't be empty.
_SIP = 256


# More than 25 methods: what programs do, what sessions do, and the bookkeeping shared by both.
class StreamTable:
    """The streams of a process, across its successive sessions."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.now = 0.0  # time of the last call from the endpoint
        self.by_uuid: dict[str, Stream] = {}
        self.sessions: list[Session] = []  # the live sessions, newest last
        self._nowhere = Session(limits)  # stands in while there is no session; never ready, nothing is sent in it
        self.session = self._nowhere  # the newest ready one: new and moving streams go there
        self.budget = CreditBudget(limits.credit, limits)
        self.replay_held = 0  # bytes that wait for acknowledgement, over all streams
        self._quarter = limits.replay // 4  # below this, every stream may read this much
        self.events: list[Event] = []
        #: Takes data as it arrives, instead of an event: the fast path of a receiving agent. The driver sets it.
        self.sink: Callable[[Stream, memoryview], object] | None = None
        self.timers = Timers()
        self.resumption = Resumption(self)
        self._deadlines = Deadlines(self)
        self.farewells = Farewells(self, self._deadlines)
        self._next_number = 1
        self._waiting: dict[Stream, None] = {}  # opens that wait for a session or for room, in order
        self.drained: list[Stream] = []  # paused writers of which bytes were sent or acknowledged

    @property
    def tombstones(self) -> Tombstones:
        """Records of streams that ended recently."""
        return self.resumption.tombstones

    # --- what a program does ------------------------------------------------------------

    def open(
        self, service: str, uuid: str, now: float, token: str | None = None, secret: bytes = b"", *, pin: str = ""
    ) -> Stream:
        """A program connected: ask for a host. Bytes written meanwhile are kept, and sent as early data if possible.

        ``secret`` is 32 random bytes, by which both ends authenticate each other later. Without it the stream ends with
        its session. ``pin`` is the id of the only host to ask.
        """
        stream = Stream(
            uuid=uuid, service=service, is_client=True, budget=self.budget, session=self._nowhere, token=token,
            secret=secret, pin=pin, open_until=now + self.limits.open_wait,
        )  # fmt: skip
        self.now = now
        self.add(stream)
        self._waiting[stream] = None
        self.send_waiting()
        self._deadlines.open(stream, stream.open_until)
        return stream

    def accept(self, stream: Stream, now: float) -> None:
        """Host: the local service took the connection. Does nothing if the stream has ended meanwhile."""
        if stream.ended:
            return
        self.now = now
        stream.move(Input.OPENED)
        stream.move_leg(LegInput.ANSWERED)
        opened = Opened(limit=stream.inbound.grant(), attempt=stream.attempt)
        stream.session.outbox.send(frames.frame(frames.OPENED, stream.number, payload=opened.encode()))
        stream.asked(now)
        self._deadlines.confirm(stream, now)
        self.activate(stream)

    def room(self, stream: Stream) -> int:
        """How many bytes to read from the program: enough to fill the stream's share or its floor, otherwise very few.

        When the replay budget is spent, thousands of programs may be about to be read, and each adds one last read.
        """
        if self.replay_held < self._quarter:  # usual case, fast
            return self._quarter
        size = stream.outbound.size
        left = self.limits.replay - self.replay_held - size  # each byte read takes two of it
        return max((left + 1) // 2, self.limits.window_floor - size, _SIP)

    def write(self, stream: Stream, data: Buffer) -> bool:
        """Queue ``data``; returns whether to write more. If not, wait for ``WritingResumed``."""
        if stream.ended:
            return True
        out = stream.outbound
        out.write(data)
        self.replay_held += len(data)
        self.activate(stream)
        if out.unsent >= self.limits.unsent or self._has_its_share(stream):
            stream.pause_writer()
        return not stream.writer_paused

    def _has_its_share(self, stream: Stream) -> bool:
        """Whether the stream's unacknowledged bytes are half of what the others leave of the replay budget.

        So N streams that write all they can converge to a share of 1/(N + 1) each, as with ``CreditBudget.share``: a
        few without a reachable peer do not stop the rest. No stream is stopped below its floor.
        """
        size = stream.outbound.size
        return size >= self.limits.window_floor and size + self.replay_held >= self.limits.replay

    def write_fast(self, stream: Stream, data: bytes) -> bool:
        """Fast path of :meth:`write`: send ``data`` as a DATA at once, if nothing is queued before it.

        Returns whether it was sent. If not, nothing was changed: call ``write``. Same as that:
        tests/core/test_fast_paths.py::test_a_sender_says_the_same_either_way
        """
        session, out = stream.session, stream.outbound
        send_fast = session.send_fast
        offset, size = out.sent, len(data)
        end, held = offset + size, self.replay_held + size
        # Nothing of the stream may go out, or there is no session.
        if stream.leg is not LegState.JOINED or stream.state not in SENDING or out.eof or send_fast is None:
            return False
        # Something waits before it.
        outbox = session.outbox
        if offset != out.end or outbox.ring or outbox.acks or outbox.control:
            return False
        # It is too large: for a frame, for the peer's limit, or for the stream's share of the replay budget.
        if size > self.limits.data or end > out.limit:
            return False
        if held >= self._quarter and held + out.size + size >= self.limits.replay:
            return False
        if not send_fast(frames.BLOCKED if end == out.limit else 0, stream.number, offset, data):
            return False
        out.write_fast(data, end)
        self.replay_held = held
        return True

    def write_eof(self, stream: Stream) -> None:
        """Record that the program writes no more."""
        if not stream.ended:
            stream.outbound.eof = True
            self.activate(stream)

    def consume(self, stream: Stream, count: int, now: float) -> bool:
        """Record that the program, or its socket, took ``count`` bytes. Returns whether frames or deadlines changed."""
        self.now = now
        due = stream.inbound.consume(count)
        if due and not stream.ended:
            stream.session.outbox.acknowledge(stream)
        elif stream.ack_timer is not None:
            return False
        else:
            self.acknowledge_later(stream, now)
        return True

    def close(self, stream: Stream, now: float) -> None:
        """The program closed: send the rest and the end. Data that still arrives is answered with a reset."""
        if stream.ended or stream.closing:
            return
        self.write_eof(stream)
        stream.close()
        if stream.opened:  # an unopened stream keeps the deadline of its open
            self._deadlines.linger(stream, now)

    def reset(self, stream: Stream, code: str, text: str = "") -> None:
        """Reset the stream at once, both ways, and tell the peer. No event follows."""
        if stream.ended:
            return
        if stream.number:
            stream.session.outbox.send(reset_frame(stream.number, code, text))
        self.end(stream, code)

    # --- the session's side of it ---------------------------------------------------------

    def start_session(self) -> Session:
        """Start a session. Streams get numbers in it once it is ready."""
        session = Session(self.limits)
        self.sessions.append(session)
        return session

    def end_session(self, session: Session, text: str, now: float) -> None:
        """End a session. Its streams resume elsewhere, wait or are opened again; a host's unanswered ones fail."""
        self.now = now
        self.sessions.remove(session)
        if self.session is session:
            self.session = next((other for other in reversed(self.sessions) if other.ready), self._nowhere)
        lost = [*session.by_number.values(), *session.moving.values()]
        session.outbox = Outbox(self.limits)  # drop what was queued
        for stream in lost:
            if stream.session is session:
                Outbox.forget(stream)
            if self.resumption.session_lost(stream, session, text, now):
                continue
            if stream.is_client:
                self.open_again(stream, now)
            else:
                self.abort(stream, "open_interrupted", text)
        assert session.idle
        if self.session.ready:
            self.resumption.go_on()

    def add(self, stream: Stream) -> None:
        """Add a new stream."""
        stream.report_to(self.drained)
        self.by_uuid[stream.uuid] = stream
        if stream.number:
            stream.session.carry(stream, stream.number, LegInput.ASKED)

    def send_waiting(self) -> None:
        """Send queued OPENs while there is room."""
        session = self.session
        while session.ready and self._waiting and session.unanswered < session.max_opens:
            stream = next(iter(self._waiting))
            del self._waiting[stream]
            session.carry(stream, session.take_number(), LegInput.ASKED)
            session.unanswered += 1
            # The relay's own deadline comes first; this one covers a relay that does not answer.
            stream.asked(self.now, self.now + self.limits.open_total + self.limits.open_host)
            message = Open(
                service=stream.service,
                uuid=stream.uuid,
                limit=stream.inbound.grant(),
                token=stream.token,
                pin=stream.pin or None,
                secret=stream.secret.hex() or None,
            )
            session.outbox.send(frames.frame(frames.OPEN, stream.number, payload=message.encode()))

    def open_again(self, stream: Stream, now: float) -> None:
        """Client: no host got anything of the stream. Ask for a host again."""
        stream.session.drop(stream)
        self.resumption.end_moves(stream, "cancelled")
        stream.untried()
        self._waiting[stream] = None
        self.now = now
        self.send_waiting()

    def receive_opened(self, stream: Stream) -> None:
        """Client: OPENED arrived. The ACK that answers it confirms the stream to the host."""
        stream.session.unanswered -= 1
        stream.session.distances.answered(stream.inbound, stream.peer, self.now - stream.asked_at)
        stream.move_leg(LegInput.ANSWERED)
        self._begin(stream)
        if stream.session is not self.session:
            self.resumption.move(stream)
        self.send_waiting()

    def handle_joined(self, stream: Stream, *, fin_acked: bool) -> None:
        """Both ends have attached. For a host this confirms the stream.

        A client that did not know that it is open waits for the host's first frame. The host's ATTACH may be old: the
        host may have given the stream up since.
        """
        stream.session.distances.forget(stream.peer)
        if not stream.opened:
            stream.doubt()
        elif not stream.confirmed:
            self.confirm(stream)
        stream.session.outbox.acknowledge(stream)
        self.activate(stream)
        self.resumption.move(stream)
        if fin_acked:
            self.handle_end_acknowledged(stream)

    def _begin(self, stream: Stream) -> None:
        stream.move(Input.OPENED)
        if stream.closing:
            self._deadlines.linger(stream, self.now)
        else:
            stream.set_timer(None)
        self.acknowledge_soon(stream)
        self.activate(stream)
        self.events.append(events.StreamOpened(stream))

    def confirm(self, stream: Stream) -> None:
        """Record that the peer was heard in the stream's leg, for the first time."""
        stream.confirm()
        if stream.is_client:
            self._begin(stream)
        else:
            stream.session.distances.answered(stream.inbound, stream.peer, self.now - stream.asked_at)
            if not stream.closing:
                stream.set_timer(None)
        if stream.session is not self.session:
            self.resumption.move(stream)

    def handle_end_acknowledged(self, stream: Stream) -> None:
        """Record that the peer has all our bytes and our end."""
        if stream.farewell is not None:
            self.fail(stream, stream.farewell.code, stream.farewell.text)
            return
        stream.move(Input.FIN_ACKED)
        self.events.append(events.EndAcknowledged(stream))
        self.if_finished(stream)

    def if_finished(self, stream: Stream) -> None:
        """Remove the stream if both directions ended. The outbox still sends its last ACK."""
        if stream.state is State.CLOSED:
            self._forget(stream, "closed")
            self.resumption.remember(stream, "closed")
            self.events.append(events.StreamFinished(stream))

    def activate(self, stream: Stream) -> None:
        """Queue the stream in the outbox if it has something to send."""
        if not stream.queued and stream.ready():
            stream.session.outbox.activate(stream)

    def deliver(self, stream: Stream, data: memoryview) -> None:
        """Pass bytes to the program, which must use or copy them before it returns."""
        if self.sink is not None:
            self.sink(stream, data)
        else:
            self.events.append(events.DataReceived(stream, data))

    def acknowledge_soon(self, stream: Stream) -> None:
        """Tell the peer of OPENED or of its end. No program waits for this ACK, so it goes with other frames."""
        stream.session.outbox.acknowledge_soon(stream)
        self._deadlines.company()

    def acknowledge_later(self, stream: Stream, now: float) -> None:
        """Acknowledge within ``Limits.ack_delay``, unless another frame does it earlier."""
        if stream.ack_timer is None and stream.inbound.unacknowledged:
            self._deadlines.acknowledge(stream, now)

    def abort(self, stream: Stream, code: str, text: str) -> None:
        """End the stream without telling the peer, because the peer knows or can't be reached."""
        self.end(stream, code)
        self.events.append(events.StreamWasReset(stream, code, printable(text)))

    def fail(self, stream: Stream, code: str, text: str) -> None:
        """End the stream, and tell both the peer and the program why."""
        if not stream.ended:
            self.reset(stream, code, text)
            self.events.append(events.StreamWasReset(stream, code, text))

    def end(self, stream: Stream, code: str) -> None:
        """Reset the stream here without a frame or an event; a peer that asks later gets the code."""
        if (stream.opened or stream.is_client) and stream.resumable:
            self.resumption.remember(stream, code)
        if stream.leg is LegState.ASKED and stream.is_client:
            stream.session.unanswered -= 1
        stream.move(Input.ABORTED)
        self._forget(stream, code)

    def _forget(self, stream: Stream, code: str) -> None:
        """Release what the stream held; it is in an end state."""
        stream.set_timer(None)
        stream.end_grace()
        if stream.ack_timer is not None:  # otherwise its timer would wake the process again after the stream is gone
            stream.ack_timer.cancel()
        if self.by_uuid.get(stream.uuid) is stream:
            del self.by_uuid[stream.uuid]
        self._waiting.pop(stream, None)
        if stream.session.by_number.get(stream.number) is stream:
            del stream.session.by_number[stream.number]
        if stream.moves:
            self.resumption.end_moves(stream, code)
        stream.inbound.release()
        self.replay_held -= stream.outbound.clear()
        if self._waiting:
            self.send_waiting()

    def handle_acknowledged(self, stream: Stream, freed: int) -> None:
        """The peer acknowledged ``freed`` more bytes: release them."""
        self.replay_held -= freed
        if stream.writer_paused and stream.outbound.unsent <= self.limits.unsent // 2:
            self.drained.append(stream)

    def resume_writers(self) -> None:
        """After bytes were sent or acknowledged, let the writers of those streams write again if they may.

        A writer with a full share is checked when the peer acknowledges bytes of it, not when others leave it more.
        That needs no search, and reaches every paused writer, because each has unacknowledged bytes.
        """
        ready = self.drained[:]
        self.drained.clear()
        for stream in ready:
            if stream.writer_paused and not stream.ended and not self._has_its_share(stream):
                stream.resume_writer()
                self.events.append(events.WritingResumed(stream))
