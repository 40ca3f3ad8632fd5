"""How a stream resumes after the loss of a leg, or moves to another session: one mechanism, ATTACH.

A stream is *detached* when its own session ends, or when the relay reports
with GONE that the peer's session ended. It stays so until both ends have
attached again. Each end sends ATTACH under a new number, with what it has
received and what it accepts. The relay matches the two and forwards each to the
other end. Then each end sends again what the other lacks. Old numbers are dead.

A stream that *moves* attaches in the newer session before it gives up its leg.
Its peer does the same when the relay asks it to. Both use the old numbers until
the other end's ATTACH arrives, so data is never held up for longer than that.

A detached stream keeps what its program writes, up to the usual bounds, and
reads nothing. A grace bounds the wait. If the stream ended meanwhile, a
tombstone answers the peer.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.states import LegInput, LegState, State
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.endpoint.tombstones import Tombstones
from kdispatch_protocol.errors import CODES, RemoteProtocolError
from kdispatch_protocol.session.timers import Timer
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Reset, reset_frame

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.table import StreamTable

__all__ = ["Resumption"]

#: Shortest interval between two sweeps of tombstones, in seconds.
_SWEEP = 1.0


class Resumption:
    """The part of the stream table that detaches streams and attaches them again."""

    def __init__(self, table: StreamTable) -> None:
        self._table = table
        self.tombstones = Tombstones(table.limits)
        self._sweeping: Timer | None = None
        self._carried = 0  # bytes of ended streams

    @property
    def carried(self) -> int:
        """Bytes of programs transferred both ways since this process began: received, or acknowledged."""
        return self._carried + sum(stream.carried for stream in self._table.by_uuid.values())

    # --- losing a leg -------------------------------------------------------------------

    def detach(self, stream: Stream, now: float) -> None:
        """Drop the leg: nothing passes until both ends have attached. This end may have attached elsewhere already."""
        table = self._table
        stream.session.drop(stream)
        self._promote(stream)
        if stream.leg is LegState.NONE:
            stream.inbound.release()  # the ATTACH will grant the peer a new limit
        if stream.grace is None and stream.opened:
            ends = now + table.limits.grace
            stream.detach(table.timers.add(ends, lambda _: self._grace_expired(stream)), now)

    def expires(self, stream: Stream) -> float | None:
        """When this end gives up a detached stream; ``None`` if it is attached. The peer counts its own time."""
        return None if stream.grace is None else self._grace_ends(stream)

    def _grace_ends(self, stream: Stream) -> float:
        return stream.detached_at + self._table.limits.grace

    @staticmethod
    def _promote(stream: Stream) -> None:
        """Move the leg of a stream without one to its oldest pending ATTACH, if there is one."""
        if stream.moves:
            session, number = next(iter(stream.moves.items()))
            stream.end_move(session)
            session.carry(stream, number, LegInput.ATTACHED)

    def gone(self, stream: Stream, now: float) -> None:
        """Handle GONE: the relay reports that the other leg is lost."""
        if not stream.resumable:
            self._table.fail(stream, "resume_expired", "The other end's session was lost.")
            return
        self.detach(stream, now)
        self.go_on([stream])

    def move_gone(self, session: Session, stream: Stream) -> None:
        """Handle GONE for the number of a move: the relay no longer knows it."""
        stream.end_move(session)
        self.move(stream)

    def session_lost(self, stream: Stream, session: Session, text: str, now: float) -> bool:
        """Handle the end of one of our sessions. Returns false if the caller must open the stream again.

        A client that has sent nothing, and attached nowhere, may open again at any host. A client that has sent early
        data must ask the host that may have it, and only that one.
        """
        if stream.moves and session in stream.moves:
            self._distrust_older(stream, session, now)
        if stream.session is not session or stream.leg is LegState.NONE:
            return True
        if stream.leg is LegState.ASKED and (not stream.is_client or stream.outbound.sent == 0):
            return False
        if not stream.resumable:
            code = "resume_expired" if stream.opened else "open_interrupted"
            self._table.abort(stream, code, text)
            return True
        self.detach(stream, now)
        return True

    def _distrust_older(self, stream: Stream, session: Session, now: float) -> None:
        """The session of a move is lost: give up all older numbers of the stream.

        The peer may have been joined in the lost session. Then it ignores the older numbers, and no end would report
        it.
        """
        for older, number in stream.end_moves(session):
            older.outbox.send(frames.frame(frames.GONE, number))
        if stream.leg is not LegState.NONE and stream.session is not session:
            stream.session.outbox.send(frames.frame(frames.GONE, stream.number))
            self.detach(stream, now)

    def _grace_expired(self, stream: Stream) -> None:
        self._table.fail(stream, "resume_expired", "The connection could not go on in time.")

    # --- our ATTACH ---------------------------------------------------------------------

    def go_on(self, streams: Iterable[Stream] | None = None) -> None:
        """Attach the detached streams among ``streams`` (default: all) in the newest session, if it is ready."""
        some = self._table.by_uuid.values() if streams is None else streams
        if self._table.session.ready:
            self._attach([stream for stream in some if stream.leg is LegState.NONE and stream.peer])

    def session_ready(self) -> None:
        """Attach all streams that can use the new session. Call this before the session sends anything else."""
        streams = list(self._table.by_uuid.values())
        self._attach([s for s in streams if (s.leg is LegState.NONE and s.peer) or self._should_move(s)])

    def move(self, stream: Stream) -> None:
        """Move the stream to a newer session, if there is one."""
        if self._should_move(stream):
            self._attach([stream])

    def _should_move(self, stream: Stream) -> bool:
        newest = self._table.session
        return (
            newest.ready and stream.session is not newest and stream.movable and newest not in (stream.moves or ())
        )  # fmt: skip

    def _attach(self, streams: list[Stream]) -> None:
        # One ATTACH per service: the relay then asks its store once for each.
        groups: dict[tuple[str | None, str], list[Stream]] = {}
        for stream in streams:
            groups.setdefault((stream.token, stream.service), []).append(stream)
        size = self._table.limits.attach_batch
        for (token, _), group in groups.items():
            for start in range(0, len(group), size):
                attach = Attach.of([self._entry(stream) for stream in group[start : start + size]], token)
                self._table.session.outbox.send(frames.frame(frames.ATTACH, payload=attach.encode()))

    def _entry(self, stream: Stream) -> AttachEntry:
        session = self._table.session
        number = session.take_number()
        if stream.leg is LegState.NONE:
            session.carry(stream, number, LegInput.ATTACHED)
        else:
            stream.add_move(session, number)
        attach = stream.attach_anew()
        inbound = stream.inbound
        return AttachEntry(
            uuid=stream.uuid,
            service=stream.service,
            role=stream.role,
            peer=stream.peer,
            number=number,
            received=inbound.received,
            limit=inbound.grant(),
            fin=inbound.finished,
            opening=not stream.opened,
            attach=attach,
            proof=stream.prove(stream.role, attach),
        )

    # --- the peer's ATTACH --------------------------------------------------------------

    def peer_attached(self, session: Session, entry: AttachEntry, now: float) -> None:
        """Handle a peer's ATTACH. With our own number it joins the stream; without a number we must attach as well."""
        stream = self._table.by_uuid.get(entry.uuid)
        if stream is None:
            self._refuse(session, entry, self.tombstones.answer(entry.uuid, entry.peer, now, opening=entry.opening))
        elif stream.peer != entry.peer or stream.role == entry.role:
            self._refuse(session, entry, "unknown_stream")  # its sender is not, or no longer, the other end
        elif stream.leg is LegState.ASKED:
            if stream.session is session:
                self._refuse(session, entry, "unknown_stream")
            # Otherwise that host's OPENED is on its way in the older session; the stream moves when it arrives.
        elif entry.number is None:
            self._asked_to_attach(session, stream, entry)
        elif session.moving.get(entry.number) is stream or (
            stream.leg is LegState.ATTACHING and session.by_number.get(entry.number) is stream
        ):
            self._join(session, stream, entry, now)

    def _asked_to_attach(self, session: Session, stream: Stream, entry: AttachEntry) -> None:
        """Attach in the newest session only, and keep the leg until the join: the peer may be moving.

        In an older session both ends could attach the stream there and in the newer one, but in different orders.
        """
        if not self._is_of_peer(stream, entry):
            self._refuse(session, entry, "bad_proof")
            return
        if entry.attach <= stream.peer_attach:
            return  # both ATTACHes were matched in another session while this question was on its way
        attaching = stream.leg is LegState.ATTACHING and stream.session is session
        if session is self._table.session and not attaching and session not in (stream.moves or ()):
            self._attach([stream])

    def _join(self, session: Session, stream: Stream, entry: AttachEntry, now: float) -> None:
        number = entry.number or 0
        moved = session.moving.get(number) is stream
        authentic = self._is_of_peer(stream, entry)
        if not authentic or entry.attach <= stream.peer_attach:
            # Tell its sender, and go on waiting for the right one.
            if authentic:  # an old entry of the peer, which has to attach again
                session.outbox.send(frames.frame(frames.GONE, number))
            else:
                session.outbox.send(reset_frame(number, "bad_proof", CODES["bad_proof"].meaning))
                self._table.events.append(events.AttachRefused(entry.uuid, entry.peer, "bad_proof"))
            if moved:
                stream.end_move(session)
            else:
                self.detach(stream, now)
            if self._table.session is session:
                self._attach([stream])
            return
        out = stream.outbound
        had_fin = out.fin_acked
        try:
            freed = self._rewound(stream, entry)
        except RemoteProtocolError as error:
            self._table.fail(stream, error.code, error.text)
            return
        stream.peer_attached(entry.attach)
        if moved:
            self._switch(stream, session, number)
        else:
            stream.move_leg(LegInput.MET)
        stream.end_grace()
        self._table.acknowledged(stream, freed)
        self._table.joined(stream, fin_acked=out.fin_acked and not had_fin)
        self._table.farewells.look(stream)

    @staticmethod
    def _switch(stream: Stream, session: Session, number: int) -> None:
        """Give up the stream's leg and all older moves: frames under those numbers are ignored from now on."""
        stream.session.drop(stream)
        stream.end_moves(session)
        session.carry(stream, number, LegInput.SWITCHED)

    @staticmethod
    def _rewound(stream: Stream, entry: AttachEntry) -> int:
        """Rewind to what the peer has; returns the bytes freed. ``RemoteProtocolError`` if that is impossible."""
        if entry.fin and stream.state not in {State.LOCAL_FIN, State.LOCAL_DONE, State.LAST_ACK}:
            raise RemoteProtocolError("An end that was never sent is said to be there.", "offset_mismatch")
        return stream.outbound.attach(entry.received, entry.limit, fin=entry.fin)

    @staticmethod
    def _is_of_peer(stream: Stream, entry: AttachEntry) -> bool:
        """Whether the stream's real other end made this entry, now or earlier, for this stream and service."""
        expected = stream.prove(entry.role, entry.attach)
        return hmac.compare_digest(expected, entry.proof) and entry.service == stream.service

    def _refuse(self, session: Session, entry: AttachEntry, code: str) -> None:
        if entry.number is not None:
            # Our number for this match is dead by now. The end that needs an answer will ask again.
            return
        reset = Reset(code=code, text=CODES[code].meaning, uuid=entry.uuid, process=entry.peer)
        session.outbox.send(frames.frame(frames.RESET, payload=reset.encode()))
        self._table.events.append(events.AttachRefused(entry.uuid, entry.peer, code))

    # --- the end ------------------------------------------------------------------------

    def move_refused(self, session: Session, stream: Stream, code: str, text: str, now: float) -> None:
        """Handle a RESET under the number of a move. A joined stream stays, and moves later if it must."""
        stream.end_move(session)
        if stream.leg is not LegState.JOINED:
            self.attach_refused(stream, code, text, now)

    def attach_refused(self, stream: Stream, code: str, text: str, now: float) -> None:
        """Handle a RESET that arrived instead of the peer's ATTACH, or before the first frame of a client's host."""
        table = self._table
        if code == "closed" and stream.state is State.LAST_ACK:
            table.acknowledged(stream, stream.outbound.clear())
            table.end_acknowledged(stream)  # the peer had everything; only its last ACK was lost
        elif stream.moves and (stream.leg is LegState.ATTACHING or stream.in_doubt):
            stream.session.drop(stream)
            self._promote(stream)
        elif stream.opened:
            table.abort(stream, "offset_mismatch" if code == "closed" else code, text)
        elif code == "unknown_stream" and now < stream.open_until:
            table.open_again(stream, now)  # that host got nothing of the stream
        else:
            table.abort(stream, "open_interrupted" if code in {"peer_restarted", "closed"} else code, text)

    def end_moves(self, stream: Stream, code: str) -> None:
        """The stream ended: tell every session in which a move is pending."""
        for session, number in list((stream.moves or {}).items()):
            session.outbox.send(reset_frame(number, code, ""))
            stream.end_move(session)

    def remember(self, stream: Stream, code: str) -> None:
        """The stream ended: keep a tombstone, so that a later question gets the code."""
        table = self._table
        self._carried += stream.carried
        heard = stream.inbound.received > 0
        since = table.now if stream.grace is None else stream.detached_at
        self.tombstones.add(stream.uuid, code, stream.peer, since, heard=heard)
        if self._sweeping is None:
            self._sweep_later()

    def _sweep_later(self) -> None:
        deadline = self.tombstones.next_deadline()
        self._sweeping = self._table.timers.add(deadline + _SWEEP, self._sweep) if deadline is not None else None

    def _sweep(self, now: float) -> None:
        self.tombstones.purge(now)
        self._sweep_later()
