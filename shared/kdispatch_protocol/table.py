"""All streams of one agent process, and what a program does with them.

The other half of an agent's protocol, what arrives from the relay, is in
``endpoint.py``. Everything here is bookkeeping: it changes tables, and queues
frames in the session's outbox.
"""

from __future__ import annotations

from kdispatch_protocol import events, frames
from kdispatch_protocol.events import Event
from kdispatch_protocol.frames import Buffer
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.messages import Open, Opened, printable, reset_frame
from kdispatch_protocol.outbox import Outbox
from kdispatch_protocol.states import Input, State
from kdispatch_protocol.streams import Stream
from kdispatch_protocol.timers import Timers
from kdispatch_protocol.windows import CreditBudget

__all__ = ["StreamTable"]


class StreamTable:
    """The streams of a process, over one session after another."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.by_uuid: dict[str, Stream] = {}
        self.by_number: dict[int, Stream] = {}  # in the current session
        self.outbox = Outbox(limits)  # the current session's
        self.ready = False  # the current session may carry opens
        self.budget = CreditBudget(limits.credit, limits)
        self.replay_held = 0  # bytes that wait for acknowledgement, over all streams
        self.max_opens = limits.opens
        self.events: list[Event] = []
        self.timers = Timers()
        self._next_number = 1
        self._waiting: dict[Stream, None] = {}  # opens for which there is no session or no room yet, in order
        self._unanswered = 0
        self._drained: list[Stream] = []  # paused writers whose unsent bytes became few
        self._short_of_replay: set[Stream] = set()  # writers paused by the process's replay budget

    # --- what a program does ------------------------------------------------------------

    def open(self, service: str, uuid: str, now: float, token: str | None = None) -> Stream:
        """A program connected: ask for a host. What it writes meanwhile is kept, and sent early where possible."""
        stream = Stream(uuid=uuid, service=service, is_client=True, budget=self.budget, token=token)
        self.add(stream)
        self._waiting[stream] = None
        self.send_waiting()
        # The relay's own deadline comes first; this one is for a relay that says nothing.
        patience = self.limits.open_total + self.limits.open_host
        stream.set_timer(self.timers.add(now + patience, lambda _: self._open_expired(stream)))
        return stream

    def accept(self, stream: Stream, now: float) -> None:
        """Host: the local service took the connection. A stream that has ended meanwhile is left alone."""
        if stream.ended:
            return
        stream.move(Input.OPENED)
        opened = Opened(limit=stream.inbound.grant(), attempt=stream.attempt)
        self.outbox.send(frames.frame(frames.OPENED, stream.number, payload=opened.encode()))
        stream.set_timer(self.timers.add(now + self.limits.confirm, lambda _: self._confirm_expired(stream)))
        self.activate(stream)

    def write(self, stream: Stream, data: Buffer) -> bool:
        """Queue ``data``; returns whether to go on writing. If not, wait for ``WritingResumed``."""
        if stream.ended:
            return True
        out = stream.outbound
        out.write(data)
        self.replay_held += len(data)
        self.activate(stream)
        if out.unsent >= self.limits.unsent:
            stream.writer_paused = True
        elif self.replay_held >= self.limits.replay and out.size >= self.limits.window_floor:
            stream.writer_paused = True
            self._short_of_replay.add(stream)
        return not stream.writer_paused

    def write_eof(self, stream: Stream) -> None:
        """The program will write no more."""
        if not stream.ended:
            stream.outbound.eof = True
            self.activate(stream)

    def consumed(self, stream: Stream, count: int, now: float) -> None:
        """The program, or its socket, took this many of the bytes it was given."""
        due = stream.inbound.consume(count)
        if due and not stream.ended:
            self.outbox.acknowledge(stream)
        else:
            self.acknowledge_later(stream, now)

    def close(self, stream: Stream, now: float) -> None:
        """The program closed: send the rest and the end; what the peer still sends is answered by a reset."""
        if stream.ended or stream.closing:
            return
        self.write_eof(stream)
        stream.closing = True
        stream.set_timer(self.timers.add(now + self.limits.linger, lambda _: self.fail(stream, "cancelled", "closed")))

    def reset(self, stream: Stream, code: str, text: str = "") -> None:
        """End it at once, both ways, and tell the peer. No event follows."""
        if stream.ended:
            return
        if stream.number:
            self.outbox.send(reset_frame(stream.number, code, text))
        self.end(stream)

    # --- the session's side of it ---------------------------------------------------------

    def start_session(self, outbox: Outbox) -> None:
        """A session begins; streams get numbers in it once it is ready."""
        self.outbox = outbox
        self._next_number = 1

    def end_session(self, text: str) -> None:
        """Opens that no host was named for wait for the next session; the others are reset."""
        self.ready = False
        for stream in list(self.by_number.values()):
            if stream.is_client and stream.state is State.OPENING:
                stream.number = 0
                stream.inbound.release()  # no host has seen that limit; the next session may have less to grant
                self._waiting[stream] = None
            else:
                code = "open_interrupted" if stream.state in {State.OPENING, State.TRYING} else "resume_expired"
                self.abort(stream, code, text)
        self.by_number.clear()
        self._unanswered = 0

    def add(self, stream: Stream) -> None:
        """Take a new stream in."""
        stream.drained = self._drained
        self.by_uuid[stream.uuid] = stream
        if stream.number:
            self.by_number[stream.number] = stream

    def take_number(self) -> int:
        """The next of this side's numbers: odd, never used twice in a session."""
        number = self._next_number
        self._next_number += 2
        return number

    def send_waiting(self) -> None:
        """Send the OPENs for which there is room."""
        while self.ready and self._waiting and self._unanswered < self.max_opens:
            stream = next(iter(self._waiting))
            del self._waiting[stream]
            stream.number = self.take_number()
            self.by_number[stream.number] = stream
            self._unanswered += 1
            limit = stream.inbound.grant()
            message = Open(service=stream.service, uuid=stream.uuid, limit=limit, token=stream.token)
            self.outbox.send(frames.frame(frames.OPEN, stream.number, payload=message.encode()))

    def opened(self, stream: Stream) -> None:
        """Client: OPENED arrived. The ACK that answers it confirms the stream to the host."""
        self._unanswered -= 1
        stream.move(Input.OPENED)
        if not stream.closing:
            stream.set_timer(None)
        self.outbox.acknowledge(stream)
        self.activate(stream)
        self.events.append(events.StreamOpened(stream))
        self.send_waiting()

    def activate(self, stream: Stream) -> None:
        """Give the stream its turn if it has something to send."""
        if not stream.queued and stream.ready():
            self.outbox.activate(stream)

    def acknowledge_later(self, stream: Stream, now: float) -> None:
        """The peer is to be told within the delay, unless something makes it sooner."""
        if not stream.ack_timed and stream.inbound.unacknowledged:
            stream.ack_timed = True
            self.timers.add(now + self.limits.ack_delay, lambda _: self._ack_due(stream))

    def abort(self, stream: Stream, code: str, text: str) -> None:
        """End it without telling the peer, who knows or can't be reached."""
        self.end(stream)
        self.events.append(events.StreamWasReset(stream, code, printable(text)))

    def fail(self, stream: Stream, code: str, text: str) -> None:
        """End it for a reason that both the peer and the program have to hear."""
        if not stream.ended:
            self.reset(stream, code, text)
            self.events.append(events.StreamWasReset(stream, code, text))

    def end(self, stream: Stream) -> None:
        """Let the stream be reset here, without a word to anybody."""
        if stream.is_client and stream.number and stream.state in {State.OPENING, State.TRYING}:
            self._unanswered -= 1
        stream.move(Input.ABORTED)
        self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """The stream is in an end state: what it held is given back."""
        stream.set_timer(None)
        if self.by_uuid.get(stream.uuid) is stream:
            del self.by_uuid[stream.uuid]
        self._waiting.pop(stream, None)
        self.by_number.pop(stream.number, None)
        stream.inbound.release()
        self.replay_held -= stream.outbound.clear()
        self._short_of_replay.discard(stream)
        self.send_waiting()

    def acknowledged(self, stream: Stream, freed: int) -> None:
        """The peer has so many bytes more: they need not be kept any longer."""
        self.replay_held -= freed
        # Whoever holds less than the floor may go on, however much the others hold.
        if stream in self._short_of_replay and stream.outbound.size < self.limits.window_floor:
            self._short_of_replay.discard(stream)
            self._drained.append(stream)

    def resume_writers(self) -> None:
        """After bytes were sent or acknowledged: who may write again?"""
        ready = self._drained[:]
        self._drained.clear()
        if self._short_of_replay and self.replay_held < self.limits.replay:
            ready += self._short_of_replay
            self._short_of_replay.clear()
        for stream in ready:
            if stream.writer_paused and not stream.ended and stream not in self._short_of_replay:
                stream.writer_paused = False
                self.events.append(events.WritingResumed(stream))

    # --- deadlines -----------------------------------------------------------------------------

    def _ack_due(self, stream: Stream) -> None:
        stream.ack_timed = False
        if stream.inbound.unacknowledged and not stream.ended:
            self.outbox.acknowledge(stream)

    def _open_expired(self, stream: Stream) -> None:
        if stream.state in {State.OPENING, State.TRYING}:
            code = "host_timeout" if stream.number else "relay_unreachable"
            self.fail(stream, code, "There was no answer to the request for a host.")

    def _confirm_expired(self, stream: Stream) -> None:
        if not stream.confirmed:
            self.fail(stream, "cancelled", "The client never confirmed the stream.")
