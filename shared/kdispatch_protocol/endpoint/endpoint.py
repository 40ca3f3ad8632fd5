"""An agent's end of its sessions: handles frames from the relay and applies them to the streams.

Sans-I/O. The driver passes what the session's carrier received to
:meth:`Endpoint.receive_frames` and sends what :meth:`Endpoint.take_batch`
returns. It calls :meth:`Endpoint.handle_timeout` at
:meth:`Endpoint.next_deadline`, and after each of these handles
:meth:`Endpoint.take_events`. Time is an argument, in seconds of any monotonic
clock. Programs use their streams through ``Endpoint.table``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.receiving import Receiving
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.states import LegState
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.endpoint.table import StreamTable
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer, Frame
from kdispatch_protocol.wire.identity import VERSIONS, process_id
from kdispatch_protocol.wire.messages import (
    Attach,
    Goaway,
    Hello,
    Offer,
    Open,
    Reset,
    Welcome,
    printable,
)

__all__ = ["Endpoint"]

#: Value of the PING that asks whether a session we left is quiet. No clock value equals it.
_QUIET: Final = (1 << 64) - 1

_BEFORE_WELCOME: Final = frozenset({frames.WELCOME, frames.GOAWAY, frames.PING, frames.PONG})


# More than 25 methods: one short one for each frame type.
class Endpoint:
    """One agent process: its streams, its offers, and its session; two sessions while it moves.

    After each input and each command, also those of ``table``, the caller handles :meth:`take_events` until there are
    none, sends :meth:`take_batch` of every session, and sets its timer to :meth:`next_deadline`.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        agent: str = "",
        limits: Limits = DEFAULT_LIMITS,
        predecessors: Sequence[bytes] = (),
    ) -> None:
        """``predecessors`` are the secrets of ended processes that this one replaces."""
        self.secret = secret
        self._predecessors = [old.hex() for old in predecessors]
        self._greeted = False  # a WELCOME has arrived once: later sessions replace that one
        self.process = process_id(secret)
        self.limits = limits
        self.table = StreamTable(limits)
        self._agent = agent
        self._offers: dict[str, Offer] = {}  # by service
        self._handlers: dict[int, Callable[[Session, int, int, memoryview, float], None]] = {
            frames.WELCOME: self._welcome,
            frames.OFFERED: self._offered,
            frames.OPEN: self._open,
            frames.ATTACH: self._attach,
            frames.RESET: self._reset,
            frames.PING: self._ping,
            frames.PONG: self._pong,
            frames.GOAWAY: self._goaway,
        }
        self.receiving = Receiving(self.table)

    # --- the session ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there is a session whose WELCOME has arrived."""
        return self.table.session.ready

    def connect(self) -> Session:
        """Queue HELLO in a new session, once a carrier is up. Nothing else is sent before the relay's WELCOME.

        If there is a session already, the agent moves: streams go to the new session as soon as it is ready.
        """
        moves = any(other.ready for other in self.table.sessions)
        session = self.table.start_session()
        hello = Hello(
            versions=list(VERSIONS),
            secret=self.secret.hex(),
            mode="move" if moves else "replace" if self._greeted else "new",
            predecessors=self._predecessors,
            agent=self._agent,
        )
        session.outbox.send(frames.frame(frames.HELLO, payload=hello.encode()))
        return session

    def disconnect(self, session: Session, now: float, text: str = "The session with the relay was lost.") -> None:
        """End a session whose carrier is gone. Its streams continue in another session, or wait for the next one."""
        self.table.end_session(session, text, now)

    def receive_frames(self, session: Session, received: list[Frame], now: float) -> None:
        """Handle frames from the session's carrier. Their payloads may be reused afterwards.

        On ``RemoteProtocolError`` close the session with its code. What the frames before it caused stays in effect.
        """
        table, stream_handlers = self.table, self.receiving.handlers
        table.now = now
        for type_, flags, number, value, payload in received:
            handler = stream_handlers.get(type_)
            if handler is not None and session.ready:
                stream = session.by_number.get(number)
                if stream is not None:
                    try:
                        handler(stream, flags, value, payload, now)
                    except RemoteProtocolError as error:  # breaks a rule of this stream only; the others continue
                        table.fail(stream, error.code, error.text)
                elif type_ == frames.GONE and number in session.moving:
                    table.resumption.move_gone(session, session.moving[number])
                continue
            general = self._handlers.get(type_)
            if general is None or not (session.ready or type_ in _BEFORE_WELCOME):
                raise RemoteProtocolError(f"A {frames.TYPE_NAMES[type_]} frame is not expected here.")
            general(session, number, value, payload, now)
        if table.drained:
            table.resume_writers()

    def take_batch(self, session: Session, most: int, now: float) -> list[Buffer]:
        """The session's next batch of frames for one message, about ``most`` bytes; empty if nothing is queued.

        Send it before the next call. It may add events, because writers may go on.
        """
        parts = session.outbox.collect(most, now)
        if self.table.drained:
            self.table.resume_writers()
        return parts

    def ping(self, value: int) -> None:
        """Send a PING with ``value``, neither 0 nor the largest. PongReceived follows, if there is a session."""
        if self.ready:
            self.table.session.outbox.send(frames.frame(frames.PING, value=value))

    def take_events(self) -> list[Event]:
        """Return the events since the last call, in order, and forget them. Handling them may cause more."""
        taken = self.table.events
        self.table.events = []
        return taken

    def next_deadline(self) -> float | None:
        """When :meth:`handle_timeout` must be called at the latest; ``None`` if nothing is due."""
        return self.table.timers.next_deadline()

    def handle_timeout(self, now: float) -> None:
        """Run what is due, and go on as after each input."""
        self.table.now = now
        for call in self.table.timers.due(now):
            call(now)

    def give_up(self, service: str, code: str, text: str) -> None:
        """Client: the relay withdrew all rights on a service. Fail its streams, and ask nothing more for it."""
        streams = self.table.by_uuid.values()
        for stream in [stream for stream in streams if stream.is_client and stream.service == service]:
            self.table.fail(stream, code, text)

    @property
    def offering(self) -> bool:
        """Whether this process offers a service."""
        return bool(self._offers)

    # --- offers ---------------------------------------------------------------------------------

    def offer(self, offer: Offer) -> None:
        """Offer this service in every session until :meth:`withdraw`."""
        if offer.service not in self._offers:
            self._offers[offer.service] = offer
            for session in self.table.sessions:
                if session.ready:
                    self._send_offer(session, offer)

    def withdraw(self, service: str) -> None:
        """Accept no new streams for the service; running ones continue."""
        self._offers.pop(service, None)
        for session in self.table.sessions:
            for number in [number for number, name in session.offers.items() if name == service]:
                del session.offers[number]
                session.offered.discard(number)
                session.outbox.send(frames.frame(frames.WITHDRAW, number))

    def leave(self, session: Session) -> None:
        """Leave an older session for good. It is ``quiet`` once the relay sends no more requests there.

        This starts when the newest session has replaced it, with every service offered there.
        """
        session.leaving = True
        self._hush()

    def _hush(self) -> None:
        newest = self.table.session
        if len(newest.offered) < len(newest.offers):
            return
        for session in self.table.sessions:
            if session.leaving and session is not newest:
                session.leaving = False
                for number in session.offers:
                    session.outbox.send(frames.frame(frames.WITHDRAW, number))
                session.outbox.send(frames.frame(frames.PING, value=_QUIET))

    @staticmethod
    def _send_offer(session: Session, offer: Offer) -> None:
        number = session.take_number()
        session.offers[number] = offer.service
        session.outbox.send(frames.frame(frames.OFFER, number, payload=offer.encode()))

    # --- frames of the session --------------------------------------------------------------------

    def _welcome(self, session: Session, number: int, value: int, payload: memoryview, now: float) -> None:
        welcome = Welcome.parse(payload)
        if session.ready or welcome.version not in VERSIONS:
            raise RemoteProtocolError("A second WELCOME, or one of an unknown version.")
        table = self.table
        table.session = session
        session.ready = True
        table.budget.total = welcome.credit
        session.max_opens = min(welcome.opens, self.limits.opens)
        self._greeted = True
        table.events.append(events.SessionReady(welcome))
        table.resumption.session_ready()  # before offers, so that the relay asks for no host while streams return
        for offer in self._offers.values():
            self._send_offer(session, offer)
        table.send_waiting()

    def _offered(self, session: Session, number: int, value: int, payload: memoryview, now: float) -> None:
        service = session.offers.get(number)
        if service is not None:
            session.offered.add(number)
            self.table.events.append(events.OfferListed(service))
            self._hush()

    def _open(self, session: Session, number: int, value: int, payload: memoryview, now: float) -> None:
        message = Open.parse(payload)
        table = self.table
        if number % 2 or number in session.by_number:
            raise RemoteProtocolError("An OPEN whose number is not a new one of the relay's.")
        # Interned: thousands of streams share the same service and peer.
        service, peer = sys.intern(message.service), sys.intern(message.process or "")
        offer = self._offers.get(message.service)
        stream = Stream(
            uuid=message.uuid, service=service, is_client=False, budget=table.budget, session=session,
            token=None if offer is None else offer.token, number=number, attempt=message.attempt or 1, peer=peer,
            key=bytes.fromhex(message.key or ""), limit=message.limit,
        )  # fmt: skip
        older = table.by_uuid.get(message.uuid)
        if older is not None and self._was_begun_anew(older, stream):
            # The client may have been joined to it meanwhile. This code lets it open the stream again.
            table.fail(older, "unknown_stream", "The client opened the stream anew.")
            older = None
        if offer is None:
            table.reset(stream, "unknown_service", "This host does not offer that service.")
        elif message.unknown_kind is not None:
            text = f"This host carries no flows of kind {printable(message.unknown_kind)!r}."
            table.reset(stream, "bad_request", text)
        elif older is not None:
            table.reset(stream, "bad_request", "This stream exists already.")
        elif len(session.by_number) >= self.limits.streams_host:
            table.reset(stream, "busy", "This host carries as many streams as it may.")
        else:
            table.add(stream)
            table.events.append(events.StreamRequested(stream))

    @staticmethod
    def _was_begun_anew(older: Stream, newer: Stream) -> bool:
        """Whether a client that had sent nothing lost its session, and opens again a stream that waits here."""
        mine = not older.is_client and older.peer == newer.peer
        elsewhere = older.session is not newer.session and not older.confirmed  # its session may be lost
        return mine and (older.leg is not LegState.JOINED or elsewhere) and not older.inbound.received

    def _attach(self, session: Session, number: int, value: int, payload: memoryview, now: float) -> None:
        for entry in Attach.parse(payload).entries():
            self.table.resumption.peer_attached(session, entry, now)

    def _reset(self, session: Session, number: int, value: int, payload: memoryview, now: float) -> None:
        reset = Reset.parse(payload)
        table = self.table
        stream = session.by_number.get(number)
        moving = session.moving.get(number)
        service = session.offers.pop(number, None)
        if service is not None:
            session.offered.discard(number)
            self._offers.pop(service, None)
            table.events.append(events.OfferRefused(service, reset.code, printable(reset.text)))
        elif moving is not None:
            table.resumption.move_refused(session, moving, reset.code, reset.text, now)
        elif stream is not None and (stream.leg is LegState.ATTACHING or stream.in_doubt or reset.code == "closed"):
            table.resumption.attach_refused(stream, reset.code, reset.text, now)
        elif stream is not None and stream.moves and not stream.confirmed:
            # The relay takes back an OPEN, because its client lost its session and asked for the stream elsewhere.
            table.resumption.detach(stream, now)
        elif stream is not None:
            table.abort(stream, reset.code, reset.text)

    def _ping(self, session: Session, number: int, value: int, payload: memoryview, now: float) -> None:
        session.outbox.send(frames.frame(frames.PONG, value=value))

    def _pong(self, session: Session, number: int, value: int, payload: memoryview, now: float) -> None:
        if value == _QUIET:  # sent after the WITHDRAWs of a session that we left
            session.quiet = True
        elif value:  # other PONGs only show that the relay answers
            self.table.events.append(events.PongReceived(value))

    def _goaway(self, session: Session, number: int, value: int, payload: memoryview, now: float) -> None:
        session.goaway = goaway = Goaway.parse(payload)
        self.table.events.append(events.SessionRefused(goaway))
