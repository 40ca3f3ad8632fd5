"""All streams of one agent process, and what a program does with them.

The other half of an agent's protocol, what arrives from the relay, is in ``endpoint.py``; what happens to a stream when
a leg of it is lost is in ``resume.py``. Everything here is bookkeeping: it changes tables, and queues frames in the
session's outbox.
"""

from __future__ import annotations

from collections.abc import Callable

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.deadlines import Deadlines
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.farewells import Farewells
from kdispatch_protocol.endpoint.resume import Resumption
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.states import SENDING, Input, Leg, LegInput, State
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

#: A read of a socket can't be of nothing: the least, in bytes.
_SIP = 256


# More than 25 methods: what programs do, what sessions do, and the bookkeeping that both share.
class StreamTable:
    """The streams of a process, over one session after another."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.now = 0.0  # the last time that this process's endpoint was told
        self.by_uuid: dict[str, Stream] = {}
        self.sessions: list[Session] = []  # those that are alive, the newest last
        self._nowhere = Session(limits)  # what is used while there is none; never ready, nothing is sent in it
        self.session = self._nowhere  # the newest that is ready: new streams, and moving ones, go there
        self.budget = CreditBudget(limits.credit, limits)
        self.replay_held = 0  # bytes that wait for acknowledgement, over all streams
        self._quarter = limits.replay // 4  # while less is held, every stream has so much room at least
        self.events: list[Event] = []
        #: Takes data as it arrives, in place of an event: the fast path of a receiving agent, which a driver sets.
        self.sink: Callable[[Stream, memoryview], None] | None = None
        self.timers = Timers()
        self.resumption = Resumption(self)
        self._deadlines = Deadlines(self)
        self.farewells = Farewells(self, self._deadlines)
        self._next_number = 1
        self._waiting: dict[Stream, None] = {}  # opens for which there is no session or no room yet, in order
        self._drained: list[Stream] = []  # paused writers of whose bytes some were sent or acknowledged

    @property
    def tombstones(self) -> Tombstones:
        """What became of streams that ended lately."""
        return self.resumption.tombstones

    # --- what a program does ------------------------------------------------------------

    def open(
        self, service: str, uuid: str, now: float, token: str | None = None, secret: bytes = b"", *, pin: str = ""
    ) -> Stream:
        """A program connected: ask for a host. What it writes meanwhile is kept, and sent early where possible.

        ``secret`` is 32 random bytes, by which the two ends know each other again; without one the stream ends
        with its session. ``pin`` is the id of the one host that will do.
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
        """Host: the local service took the connection. A stream that has ended meanwhile is left alone."""
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
        """How many bytes to ask the program for at once: what makes its share full, or its floor; else hardly any.

        Thousands of programs may be about to be read when the replay budget is spent: each one's next read is its last.
        """
        if self.replay_held < self._quarter:  # the usual case, quickly
            return self._quarter
        size = stream.outbound.size
        left = self.limits.replay - self.replay_held - size  # each byte read takes two of it
        return max((left + 1) // 2, self.limits.window_floor - size, _SIP)

    def write(self, stream: Stream, data: Buffer) -> bool:
        """Queue ``data``; returns whether to go on writing. If not, wait for ``WritingResumed``."""
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
        """Whether its bytes that wait for acknowledgement are half of what the others leave of the replay budget.

        So N streams that write all they can come to hold an N + 1st part each, as with ``CreditBudget.share``: a few
        that have lost their peers do not stop the rest. And no stream is stopped below its floor.
        """
        size = stream.outbound.size
        return size >= self.limits.window_floor and size + self.replay_held >= self.limits.replay

    def pass_on(self, stream: Stream, data: bytes) -> bool:
        """The fast path of a sender: ``data`` goes out as a DATA right now, if nothing waits before it.

        Returns whether that was done; if not, nothing was, and ``data`` is to be written.
        """
        session = stream.session
        size = len(data)
        held = self.replay_held + size
        out = stream.outbound
        offset = out.sent
        end = offset + size
        if (
            stream.leg is not Leg.JOINED
            or stream.state not in SENDING
            or size > self.limits.data
            or (held >= self._quarter and held + out.size + size >= self.limits.replay)  # it would have its share
            or offset != out.end  # something waits before it
            or end > out.limit
            or out.eof
            or session.send_data is None
            or (outbox := session.outbox).ring
            or outbox.acks
            or outbox.control
            or not session.send_data(frames.BLOCKED if end == out.limit else 0, stream.number, offset, data)
        ):
            return False
        out.passed_on(data, end)
        self.replay_held = held
        return True

    def write_eof(self, stream: Stream) -> None:
        """The program will write no more."""
        if not stream.ended:
            stream.outbound.eof = True
            self.activate(stream)

    def consumed(self, stream: Stream, count: int, now: float) -> bool:
        """The program, or its socket, took this many of the bytes it was given; returns whether that changed more."""
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
        """The program closed: send the rest and the end; what the peer still sends is answered by a reset."""
        if stream.ended or stream.closing:
            return
        self.write_eof(stream)
        stream.close()
        if stream.opened:  # before that it has the deadline of its open
            self._deadlines.linger(stream, now)

    def reset(self, stream: Stream, code: str, text: str = "") -> None:
        """End it at once, both ways, and tell the peer. No event follows."""
        if stream.ended:
            return
        if stream.number:
            stream.session.outbox.send(reset_frame(stream.number, code, text))
        self.end(stream, code)

    # --- the session's side of it ---------------------------------------------------------

    def start_session(self) -> Session:
        """A session begins; streams get numbers in it once it is ready."""
        session = Session(self.limits)
        self.sessions.append(session)
        return session

    def end_session(self, session: Session, text: str, now: float) -> None:
        """Streams go on in another session, or wait for one, but for those of a host that had no answer yet."""
        self.now = now
        self.sessions.remove(session)
        if self.session is session:
            self.session = next((other for other in reversed(self.sessions) if other.ready), self._nowhere)
        lost = [*session.by_number.values(), *session.moving.values()]
        session.outbox = Outbox(self.limits)  # what waited in it goes nowhere
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
        """Take a new stream in."""
        stream.report_to(self._drained)
        self.by_uuid[stream.uuid] = stream
        if stream.number:
            stream.session.carry(stream, stream.number, LegInput.ASKED)

    def send_waiting(self) -> None:
        """Send the OPENs for which there is room."""
        session = self.session
        while session.ready and self._waiting and session.unanswered < session.max_opens:
            stream = next(iter(self._waiting))
            del self._waiting[stream]
            session.carry(stream, session.take_number(), LegInput.ASKED)
            session.unanswered += 1
            # The relay's own deadline comes first; this one is for a relay that says nothing.
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
        """Client: nothing of the stream was delivered anywhere. Ask for a host anew."""
        stream.session.drop(stream)
        self.resumption.end_moves(stream, "cancelled")
        stream.untried()
        self._waiting[stream] = None
        self.now = now
        self.send_waiting()

    def opened(self, stream: Stream) -> None:
        """Client: OPENED arrived. The ACK that answers it confirms the stream to the host."""
        stream.session.unanswered -= 1
        stream.session.distances.answered(stream.inbound, stream.peer, self.now - stream.asked_at)
        stream.move_leg(LegInput.ANSWERED)
        self._begin(stream)
        self.resumption.move(stream)
        self.send_waiting()

    def joined(self, stream: Stream, *, fin_acked: bool) -> None:
        """Both ends have attached. That confirms a stream, and opens one whose client had not heard of it."""
        stream.session.distances.forget(stream.peer)
        self.confirm(stream)
        if not stream.opened:
            self._begin(stream)
        stream.session.outbox.acknowledge(stream)
        self.activate(stream)
        self.resumption.move(stream)
        if fin_acked:
            self.end_acknowledged(stream)

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
        """Host: the client was heard."""
        if not stream.confirmed:
            stream.confirm()
            stream.session.distances.answered(stream.inbound, stream.peer, self.now - stream.asked_at)
            if not stream.closing:
                stream.set_timer(None)
            self.resumption.move(stream)

    def end_acknowledged(self, stream: Stream) -> None:
        """The peer has all our bytes and our end."""
        if stream.farewell is not None:
            self.fail(stream, stream.farewell.code, stream.farewell.text)
            return
        stream.move(Input.FIN_ACKED)
        self.events.append(events.EndAcknowledged(stream))
        self.if_finished(stream)

    def if_finished(self, stream: Stream) -> None:
        """Both directions ended: forget the stream. Its last ACK still finds its way through the outbox."""
        if stream.state is State.CLOSED:
            self._forget(stream, "closed")
            self.resumption.remember(stream, "closed")
            self.events.append(events.StreamFinished(stream))

    def activate(self, stream: Stream) -> None:
        """Give the stream its turn if it has something to send."""
        if not stream.queued and stream.ready():
            stream.session.outbox.activate(stream)

    def deliver(self, stream: Stream, data: memoryview) -> None:
        """Bytes for the program, to be used or copied before the caller goes on."""
        if self.sink is not None:
            self.sink(stream, data)
        else:
            self.events.append(events.DataReceived(stream, data))

    def acknowledge_soon(self, stream: Stream) -> None:
        """The peer is to be told of OPENED or of its end: no program waits for it, so it goes with other frames."""
        stream.session.outbox.acknowledge_soon(stream)
        self._deadlines.company()

    def acknowledge_later(self, stream: Stream, now: float) -> None:
        """The peer is to be told within the delay, unless something makes it sooner."""
        if stream.ack_timer is None and stream.inbound.unacknowledged:
            self._deadlines.acknowledge(stream, now)

    def abort(self, stream: Stream, code: str, text: str) -> None:
        """End it without telling the peer, who knows or can't be reached."""
        self.end(stream, code)
        self.events.append(events.StreamWasReset(stream, code, printable(text)))

    def fail(self, stream: Stream, code: str, text: str) -> None:
        """End it for a reason that both the peer and the program have to hear."""
        if not stream.ended:
            self.reset(stream, code, text)
            self.events.append(events.StreamWasReset(stream, code, text))

    def end(self, stream: Stream, code: str) -> None:
        """Let the stream be reset here, without a word to anybody; a peer that asks later is told the code."""
        if (stream.opened or stream.is_client) and stream.resumable:
            self.resumption.remember(stream, code)
        if stream.leg is Leg.ASKED and stream.is_client:
            stream.session.unanswered -= 1
        stream.move(Input.ABORTED)
        self._forget(stream, code)

    def _forget(self, stream: Stream, code: str) -> None:
        """The stream is in an end state: what it held is given back."""
        stream.set_timer(None)
        stream.end_grace()
        if stream.ack_timer is not None:  # else a short stream would wake its process once more when it is long gone
            stream.ack_timer.cancel()
        if self.by_uuid.get(stream.uuid) is stream:
            del self.by_uuid[stream.uuid]
        self._waiting.pop(stream, None)
        if stream.session.by_number.get(stream.number) is stream:
            del stream.session.by_number[stream.number]
        self.resumption.end_moves(stream, code)
        stream.inbound.release()
        self.replay_held -= stream.outbound.clear()
        self.send_waiting()

    def acknowledged(self, stream: Stream, freed: int) -> None:
        """The peer has so many bytes more: they need not be kept any longer."""
        self.replay_held -= freed
        if stream.writer_paused and stream.outbound.unsent <= self.limits.unsent // 2:
            self._drained.append(stream)

    def resume_writers(self) -> None:
        """After bytes were sent or acknowledged: who of those that they belonged to may write again?

        A writer that has its share is looked at when something of its own is acknowledged, not when others leave it
        more: that needs no search, and comes to each, since whoever is paused has bytes that are to be acknowledged.
        """
        if not self._drained:
            return
        ready = self._drained[:]
        self._drained.clear()
        for stream in ready:
            if stream.writer_paused and not stream.ended and not self._has_its_share(stream):
                stream.resume_writer()
                self.events.append(events.WritingResumed(stream))
