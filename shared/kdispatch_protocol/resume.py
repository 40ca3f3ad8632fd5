"""How a stream goes on when a leg of it is lost: one mechanism, ATTACH.

A stream is *detached* from the moment at which its own session ends, or the
relay says that the peer's did (GONE), until both ends have attached again. Each
end says ATTACH under a new number, with what it has received and what it will
take; the relay brings the two together and gives each the other's. Then each
sends again what the other lacks. Numbers of before are dead.

While it is detached a stream keeps what its program writes, up to the usual
bounds, and reads nothing. A grace bounds the wait; what ended meanwhile is
told from a tombstone when the peer asks.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from kdispatch_protocol import events, frames
from kdispatch_protocol.errors import CODES, RemoteProtocolError
from kdispatch_protocol.messages import Attach, AttachEntry, Reset, reset_frame
from kdispatch_protocol.states import Leg, State
from kdispatch_protocol.streams import Stream
from kdispatch_protocol.timers import Timer
from kdispatch_protocol.tombstones import Tombstones

if TYPE_CHECKING:
    from kdispatch_protocol.table import StreamTable

__all__ = ["Resumption"]

#: Tombstones are swept at most once in so many seconds.
_SWEEP = 1.0


class Resumption:
    """The part of a process's stream table that detaches streams and attaches them again."""

    def __init__(self, table: StreamTable) -> None:
        self._table = table
        self.tombstones = Tombstones(table.limits)
        self._sweeping: Timer | None = None

    # --- losing a leg -------------------------------------------------------------------

    def detach(self, stream: Stream, now: float) -> None:
        """Its leg is gone: nothing passes until both ends have attached again."""
        table = self._table
        table.drop_number(stream)
        stream.inbound.release()  # what the peer may send is said anew, in the ATTACH
        if stream.grace is None and stream.opened:
            stream.detached_at = now
            expires = now + table.limits.grace
            stream.set_grace(table.timers.add(expires, lambda _: self._grace_expired(stream)))

    def gone(self, stream: Stream, now: float) -> None:
        """The relay says that the other leg is lost."""
        if not stream.resumable:
            self._table.fail(stream, "resume_expired", "The other end's session was lost.")
            return
        self.detach(stream, now)
        self._attach([stream])

    def session_lost(self, stream: Stream, text: str, now: float) -> bool:
        """Our own session ended; returns whether that is all done, or the stream has to be begun anew.

        A client that has sent nothing may simply ask again. One that has sent early data must ask the
        very host that may have it, and that host alone.
        """
        if not stream.opened and (not stream.is_client or stream.outbound.sent == 0):
            return False
        if not stream.resumable:
            code = "resume_expired" if stream.opened else "open_interrupted"
            self._table.abort(stream, code, text)
            return True
        self.detach(stream, now)
        return True

    def _grace_expired(self, stream: Stream) -> None:
        self._table.fail(stream, "resume_expired", "The connection could not go on in time.")

    # --- our ATTACH ---------------------------------------------------------------------

    def session_ready(self) -> None:
        """A new session can carry streams: attach all that are detached, before anything else is said."""
        self._attach([stream for stream in self._table.by_uuid.values() if stream.leg is Leg.NONE and stream.peer])

    def _attach(self, streams: list[Stream]) -> None:
        # The relay asks its store once for each service of an ATTACH.
        groups: dict[tuple[str | None, str], list[Stream]] = {}
        for stream in streams:
            groups.setdefault((stream.token, stream.service), []).append(stream)
        size = self._table.limits.attach_batch
        for (token, _), group in groups.items():
            for start in range(0, len(group), size):
                attach = Attach.of([self._entry(stream) for stream in group[start : start + size]], token)
                self._table.outbox.send(frames.frame(frames.ATTACH, payload=attach.encode()))

    def _entry(self, stream: Stream) -> AttachEntry:
        self._table.give_number(stream, Leg.ATTACHING)
        stream.attach += 1
        inbound = stream.inbound
        return AttachEntry(
            uuid=stream.uuid,
            service=stream.service,
            role=stream.role,
            peer=stream.peer,
            number=stream.number,
            received=inbound.received,
            limit=inbound.grant(),
            fin=inbound.finished,
            opening=not stream.opened,
            attach=stream.attach,
            proof=stream.prove(stream.role, stream.attach),
        )

    # --- the peer's ATTACH --------------------------------------------------------------

    def peer_attached(self, entry: AttachEntry, now: float) -> None:
        """A peer's ATTACH: under our own number it joins the stream, without one it asks us to attach as well."""
        stream = self._table.by_uuid.get(entry.uuid)
        if stream is None:
            self._refuse(entry, self.tombstones.answer(entry.uuid, entry.peer, now, opening=entry.opening))
        elif stream.peer != entry.peer or stream.role == entry.role or stream.leg is Leg.ASKED:
            self._refuse(entry, "unknown_stream")  # an end that the stream is not, or no longer, bound to
        elif entry.number is None:
            self._asked_to_attach(stream, entry, now)
        elif entry.number == stream.number and stream.leg is Leg.ATTACHING:
            self._join(stream, entry, now)

    def _asked_to_attach(self, stream: Stream, entry: AttachEntry, now: float) -> None:
        if not self._proves(stream, entry):
            self._refuse(entry, "bad_proof")
        elif stream.leg is Leg.JOINED:
            self.gone(stream, now)

    def _join(self, stream: Stream, entry: AttachEntry, now: float) -> None:
        if not self._proves(stream, entry):
            # Not the peer: it is told, and the stream goes on waiting for the true one.
            self._table.outbox.send(reset_frame(stream.number, "bad_proof", CODES["bad_proof"].meaning))
            self._table.events.append(events.AttachRefused(entry.uuid, entry.peer, "bad_proof"))
            self.detach(stream, now)
            self._attach([stream])
            return
        out = stream.outbound
        had_fin = out.fin_acked
        try:
            freed = self._rewound(stream, entry)
        except RemoteProtocolError as error:
            self._table.fail(stream, error.code, error.text)
            return
        stream.peer_attach = entry.attach
        stream.leg = Leg.JOINED
        stream.set_grace(None)
        self._table.acknowledged(stream, freed)
        self._table.joined(stream, fin_acked=out.fin_acked and not had_fin)

    @staticmethod
    def _rewound(stream: Stream, entry: AttachEntry) -> int:
        """Go back to what the peer has; returns the bytes freed, and raises what can't be true."""
        if entry.fin and stream.state not in {State.LOCAL_FIN, State.LOCAL_DONE, State.LAST_ACK}:
            raise RemoteProtocolError("An end that was never sent is said to be there.", "offset_mismatch")
        return stream.outbound.attach(entry.received, entry.limit, fin=entry.fin)

    @staticmethod
    def _proves(stream: Stream, entry: AttachEntry) -> bool:
        """Whether the stream's own other end said it, for this stream and service, and for the first time."""
        expected = stream.prove(entry.role, entry.attach)
        fresh = entry.attach > stream.peer_attach and entry.service == stream.service
        return hmac.compare_digest(expected, entry.proof) and fresh

    def _refuse(self, entry: AttachEntry, code: str) -> None:
        table = self._table
        if entry.number is not None:
            # Brought together under a number of ours that is dead by now: whoever is to hear of it will ask again.
            return
        reset = Reset(code=code, text=CODES[code].meaning, uuid=entry.uuid, process=entry.peer)
        table.outbox.send(frames.frame(frames.RESET, payload=reset.encode()))
        table.events.append(events.AttachRefused(entry.uuid, entry.peer, code))

    # --- the end ------------------------------------------------------------------------

    def attach_refused(self, stream: Stream, code: str, text: str, now: float) -> None:
        """RESET came in the place of the peer's ATTACH."""
        table = self._table
        if code == "closed" and stream.state is State.LAST_ACK:
            table.acknowledged(stream, stream.outbound.clear())
            table.end_acknowledged(stream)  # the peer had all of it, and only its last ACK was lost
        elif stream.opened:
            table.abort(stream, "offset_mismatch" if code == "closed" else code, text)
        elif code == "unknown_stream" and now < stream.open_until:
            table.open_again(stream, now)  # nothing of it was delivered there
        else:
            table.abort(stream, "open_interrupted" if code in {"peer_restarted", "closed"} else code, text)

    def remember(self, stream: Stream, code: str) -> None:
        """The stream ended; whoever asks for it later is told how."""
        table = self._table
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
