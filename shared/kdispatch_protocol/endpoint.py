"""An agent's end of a session: what arrives from the relay, and what it does to the streams.

Sans-I/O. The driver feeds :meth:`Endpoint.receive_frames` what the session's
carrier received, sends what :meth:`Endpoint.data_to_send` gives, calls
:meth:`Endpoint.handle_timeout` at :meth:`Endpoint.next_deadline`, and after each
of these acts on :meth:`Endpoint.take_events`. Time is an argument, in seconds
of any clock that never goes back. What a program does with its streams is in
``Endpoint.table``.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from typing import Final

from kdispatch_protocol import events, frames
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.events import Event
from kdispatch_protocol.frames import Buffer, Frame
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.messages import Attach, Goaway, Hello, Offer, Open, Opened, Reset, Trying, Welcome, printable
from kdispatch_protocol.outbox import Outbox
from kdispatch_protocol.states import Input, Leg, State
from kdispatch_protocol.streams import Stream
from kdispatch_protocol.table import StreamTable

__all__ = ["VERSIONS", "Endpoint", "host_id", "process_id"]

#: Protocol versions this code speaks.
VERSIONS: Final = (1,)

_BEFORE_WELCOME: Final = frozenset({frames.WELCOME, frames.GOAWAY, frames.PING, frames.PONG})


def process_id(secret: bytes) -> str:
    """What others see of a process: the first 16 bytes of its secret's SHA-256, in hex."""
    return hashlib.sha256(secret).digest()[:16].hex()


def host_id(process: str, service: str) -> str:
    """The id of a process as a host of one service: the same after every reconnect."""
    return hashlib.sha256(f"kdispatch host {process} {service}".encode()).digest()[:16].hex()


# More than 25 methods: one for each type of frame, each short.
class Endpoint:
    """One agent process: its streams, its offers, and one session at a time."""

    def __init__(
        self,
        secret: bytes,
        *,
        agent: str = "",
        limits: Limits = DEFAULT_LIMITS,
        predecessors: Sequence[bytes] = (),
    ) -> None:
        """``predecessors`` are the secrets of processes that ended and that this one stands in for."""
        self.secret = secret
        self._predecessors = [old.hex() for old in predecessors]
        self._greeted = False  # a relay's WELCOME was here: later sessions replace it
        self.process = process_id(secret)
        self.limits = limits
        self.table = StreamTable(limits)
        self._agent = agent
        self._offers: dict[str, Offer] = {}  # by service
        self._offer_numbers: dict[int, str] = {}
        self._handlers: dict[int, Callable[[int, int, memoryview, float], None]] = {
            frames.WELCOME: self._welcome,
            frames.OFFERED: self._offered,
            frames.OPEN: self._open,
            frames.ATTACH: self._attach,
            frames.RESET: self._reset,
            frames.PING: self._ping,
            frames.PONG: self._ignore,
            frames.GOAWAY: self._goaway,
        }
        # For a stream that is in the table; frames for any other number are late ones, and dropped.
        self._stream_handlers: dict[int, Callable[[Stream, int, int, memoryview, float], None]] = {
            frames.TRYING: self._trying,
            frames.OPENED: self._opened,
            frames.DATA: self._data,
            frames.ACK: self._ack,
            frames.FIN: self._fin,
            frames.GONE: self._gone,
        }

    # --- the session ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """The relay's WELCOME arrived in the current session."""
        return self.table.ready

    def connect(self) -> None:
        """A carrier is up: queue HELLO. Nothing else goes out before the relay's WELCOME."""
        self.table.start_session(Outbox(self.limits))
        hello = Hello(
            versions=list(VERSIONS),
            secret=self.secret.hex(),
            mode="replace" if self._greeted else "new",
            predecessors=self._predecessors,
            agent=self._agent,
        )
        self.table.outbox.send(frames.frame(frames.HELLO, payload=hello.encode()))

    def disconnect(self, now: float, text: str = "The session with the relay was lost.") -> None:
        """The carrier is gone. Streams wait for the next one."""
        self._offer_numbers.clear()
        self.table.end_session(text, now)

    def receive_frames(self, received: list[Frame], now: float) -> None:
        """Frames from the carrier, whose payloads may be reused afterwards.

        On ``RemoteProtocolError`` close the session with its code.
        """
        table = self.table
        table.now = now
        for type_, flags, number, value, payload in received:
            handler = self._stream_handlers.get(type_)
            if handler is not None and table.ready:
                stream = table.by_number.get(number)
                if stream is not None:
                    try:
                        handler(stream, flags, value, payload, now)
                    except RemoteProtocolError as error:  # a rule of this one stream; the others go on
                        table.fail(stream, error.code, error.text)
                continue
            general = self._handlers.get(type_)
            if general is None or not (table.ready or type_ in _BEFORE_WELCOME):
                raise RemoteProtocolError(f"A {frames.TYPE_NAMES[type_]} frame is not expected here.")
            general(number, value, payload, now)
        table.resume_writers()

    def data_to_send(self, most: int, now: float) -> list[Buffer]:
        """The next batch of frames for one message, about ``most`` bytes; empty when there is nothing."""
        parts = self.table.outbox.collect(most, now)
        self.table.resume_writers()
        return parts

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        taken = self.table.events
        self.table.events = []
        return taken

    def next_deadline(self) -> float | None:
        """When :meth:`handle_timeout` must be called at the latest."""
        return self.table.timers.next_deadline()

    def handle_timeout(self, now: float) -> None:
        """Do what is due."""
        self.table.now = now
        for call in self.table.timers.due(now):
            call(now)

    # --- offers ---------------------------------------------------------------------------------

    def offer(self, offer: Offer) -> None:
        """Serve this service, in this session and the next ones, until withdrawn."""
        if offer.service not in self._offers:
            self._offers[offer.service] = offer
            if self.ready:
                self._send_offer(offer)

    def withdraw(self, service: str) -> None:
        """Take no new streams for it; running ones go on."""
        self._offers.pop(service, None)
        for number, name in list(self._offer_numbers.items()):
            if name == service:
                del self._offer_numbers[number]
                self.table.outbox.send(frames.frame(frames.WITHDRAW, number))

    def _send_offer(self, offer: Offer) -> None:
        number = self.table.take_number()
        self._offer_numbers[number] = offer.service
        self.table.outbox.send(frames.frame(frames.OFFER, number, payload=offer.encode()))

    # --- frames of the session --------------------------------------------------------------------

    def _welcome(self, number: int, value: int, payload: memoryview, now: float) -> None:
        welcome = Welcome.parse(payload)
        if self.ready or welcome.version not in VERSIONS:
            raise RemoteProtocolError("A second WELCOME, or one of an unknown version.")
        table = self.table
        table.ready = True
        table.budget.total = welcome.credit
        table.max_opens = min(welcome.opens, self.limits.opens)
        self._greeted = True
        table.events.append(events.SessionReady(welcome))
        table.resumption.session_ready()  # before offers, so that a host is asked for nothing while it comes back
        for offer in self._offers.values():
            self._send_offer(offer)
        table.send_waiting()

    def _offered(self, number: int, value: int, payload: memoryview, now: float) -> None:
        service = self._offer_numbers.get(number)
        if service is not None:
            self.table.events.append(events.Offered(service))

    def _open(self, number: int, value: int, payload: memoryview, now: float) -> None:
        message = Open.parse(payload)
        table = self.table
        if number % 2 or number in table.by_number:
            raise RemoteProtocolError("An OPEN whose number is not a new one of the relay's.")
        # Interned: streams by the thousand have the same service and the same peer.
        service, peer = sys.intern(message.service), sys.intern(message.process or "")
        stream = Stream(uuid=message.uuid, service=service, is_client=False, budget=table.budget)
        stream.number = number
        stream.attempt = message.attempt or 1
        stream.peer = peer
        stream.key = bytes.fromhex(message.key or "")
        stream.outbound.limit = message.limit
        offer = self._offers.get(message.service)
        if offer is not None:
            stream.token = offer.token
        older = table.by_uuid.get(message.uuid)
        if older is not None and self._was_begun_anew(older, stream):
            table.fail(older, "cancelled", "The client opened the stream anew.")
            older = None
        if offer is None:
            table.reset(stream, "unknown_service", "This host does not offer that service.")
        elif older is not None:
            table.reset(stream, "bad_request", "This stream exists already.")
        elif len(table.by_number) >= self.limits.streams_host:
            table.reset(stream, "busy", "This host carries as many streams as it may.")
        else:
            table.add(stream)
            table.events.append(events.StreamRequested(stream))

    @staticmethod
    def _was_begun_anew(older: Stream, newer: Stream) -> bool:
        """Whether a client that had sent nothing lost its session, and opens a stream again that is waiting here."""
        mine = not older.is_client and older.peer == newer.peer
        return mine and older.leg is not Leg.JOINED and not older.inbound.received

    def _attach(self, number: int, value: int, payload: memoryview, now: float) -> None:
        for entry in Attach.parse(payload).entries():
            self.table.resumption.peer_attached(entry, now)

    def _reset(self, number: int, value: int, payload: memoryview, now: float) -> None:
        reset = Reset.parse(payload)
        table = self.table
        stream = table.by_number.get(number)
        service = self._offer_numbers.pop(number, None)
        if service is not None:
            self._offers.pop(service, None)
            table.events.append(events.OfferRefused(service, reset.code, printable(reset.text)))
        elif stream is not None and (stream.leg is Leg.ATTACHING or reset.code == "closed"):
            table.resumption.attach_refused(stream, reset.code, reset.text, now)
        elif stream is not None:
            table.abort(stream, reset.code, reset.text)

    def _ping(self, number: int, value: int, payload: memoryview, now: float) -> None:
        self.table.outbox.send(frames.frame(frames.PONG, value=value))

    def _ignore(self, number: int, value: int, payload: memoryview, now: float) -> None:
        """A PONG: that it arrived is all it says."""

    def _goaway(self, number: int, value: int, payload: memoryview, now: float) -> None:
        self.table.events.append(events.SessionRefused(Goaway.parse(payload)))

    # --- frames of one stream -----------------------------------------------------------------------

    def _trying(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        trying = Trying.parse(payload)
        if not stream.is_client or stream.leg is not Leg.ASKED:
            raise RemoteProtocolError("A TRYING for a stream that is not being opened.")
        stream.move(Input.TRIED)
        stream.attempt = trying.attempt
        stream.peer = sys.intern(trying.process)
        stream.host = sys.intern(trying.host)
        stream.outbound.rewind()  # the relay dropped what was meant for the host before
        self.table.activate(stream)

    def _opened(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        opened = Opened.parse(payload)
        if stream.leg is not Leg.ASKED or stream.state is not State.TRYING or opened.attempt != stream.attempt:
            raise RemoteProtocolError("An OPENED for a stream that is not being opened.")
        if opened.limit < self.limits.early:
            raise RemoteProtocolError("The first limit is below the floor.")
        stream.outbound.limit = opened.limit
        self.table.opened(stream)

    def _data(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        if stream.leg is not Leg.JOINED or not stream.confirmed:
            self._must_be_open(stream)
        known = stream.inbound.accept(value, len(payload))
        if stream.closing:
            self.table.fail(stream, "cancelled", "The program had closed.")
        elif known < len(payload):
            stream.inbound.note(flags, len(payload) - known, now)
            self.table.deliver(stream, payload[known:] if known else payload)
            # The acknowledgement waits for `consumed`, or for the delay.
            if not stream.ack_timed:
                self.table.acknowledge_later(stream, now)

    def _ack(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        self._must_be_open(stream)
        fin = bool(flags & frames.FIN_ARRIVED)
        out = stream.outbound
        acknowledged_before = out.fin_acked
        self.table.acknowledged(stream, out.acknowledge(value, frames.ack_limit(payload), fin=fin))
        if fin and not acknowledged_before:
            self.table.end_acknowledged(stream)
        else:
            self.table.activate(stream)

    def _fin(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        self._must_be_open(stream)
        known = stream.inbound.finished
        stream.inbound.finish(value)
        self.table.outbox.acknowledge(stream)
        if not known:
            stream.move(Input.FIN_ARRIVED)
            self.table.events.append(events.EndReceived(stream))
            self.table.if_finished(stream)

    def _gone(self, stream: Stream, flags: int, value: int, payload: memoryview, now: float) -> None:
        if stream.leg is Leg.ASKED:
            raise RemoteProtocolError("A GONE for a stream that is not open yet.")
        self.table.resumption.gone(stream, now)

    def _must_be_open(self, stream: Stream) -> None:
        if stream.leg is not Leg.JOINED:
            raise RemoteProtocolError("A frame for a stream that is not open, or not attached again.")
        self.table.confirm(stream)
