"""Frames of running streams: checks order and credit, and passes them to the other end. Sans-I/O."""

from __future__ import annotations

from collections.abc import Callable

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_protocol.wire.messages import reset_frame
from kdispatch_relay.switch.budget import ProcessBudget
from kdispatch_relay.switch.opens import Opens
from kdispatch_relay.switch.routes import Leg, RouteState
from kdispatch_relay.switch.sessions import SwitchSession

__all__ = ["Passing"]

# An ACK that only grants more costs this much, in units of an OPEN: a program that slowly reads data that arrived long
# ago causes ten a second for each stream.
_ACK = 0.1


class Passing:
    """Passes on the frames of running streams, to the sessions' outboxes. Each such session goes into ``touched``."""

    def __init__(
        self,
        opens: Opens,
        touched: set[SwitchSession],
        forwarded: Callable[[SwitchSession], None],
        budget: ProcessBudget,
    ) -> None:
        self._budget = budget
        self._opens = opens
        self._touched = touched
        self._forwarded = forwarded

    def data(self, leg: Leg, flags: int, value: int, payload: memoryview, now: float) -> None:
        """Check order and credit, then queue the DATA for the other end."""
        end = value + len(payload)
        peer = leg.peer
        if peer is None or value != leg.next or end > leg.limit:
            if not self._may_pass(leg, value, end, now):
                return
            assert leg.peer is not None
            peer = leg.peer
        leg.next = end
        peer.forward(frames.DATA, flags, value, payload, now)
        self._forwarded(peer.session)

    def data_fast(self, session: SwitchSession, flags: int, number: int, value: int, payload: Buffer) -> bool:
        """Fast path of :meth:`data`: write a DATA directly to its peer's socket, if nothing waits there.

        Returns whether it did. If not, nothing was changed: pass the frame to :meth:`Switch.receive_frames`. Same as
        that: tests/core/test_fast_paths.py::test_a_relay_says_the_same_either_way
        """
        leg = session.legs.get(number)
        if leg is None or leg.peer is None or session.stalled or self._budget.tight:
            return False
        peer = leg.peer
        end = value + len(payload)
        receiver = peer.session
        send_fast, outbox = receiver.send_fast, receiver.outbox
        if value != leg.next or end > leg.limit or send_fast is None or outbox.ring or outbox.acks or outbox.control:
            return False
        if not send_fast(flags, peer.number, value, payload):
            return False
        leg.next = end
        peer.late_since = None  # it did not wait at all
        return True

    def frame(  # noqa: PLR0917 - one frame's fields
        self, leg: Leg, type_: int, flags: int, value: int, payload: memoryview, now: float
    ) -> None:
        """Handle the other frames that name a stream: OPENED, EARLY, FIN and ACK."""
        code = ""
        if type_ == frames.OPENED:
            code = self._opens.opened(leg, payload, now)
        elif type_ == frames.EARLY:
            code = self._opens.early(leg, value, payload, now)
        elif leg.peer is None:
            code = "protocol_error"
        elif type_ == frames.FIN:
            if value > leg.limit and not leg.resumed:  # after an ATTACH there may be bytes that an older limit allowed
                code = "credit_exceeded"
            elif leg.fin_passed:  # a repeated FIN says nothing new
                leg.session.effort.idle += 1
            else:
                leg.fin_passed = True
                leg.peer.forward(type_, 0, value, b"", now)
                self._touched.add(leg.peer.session)
        elif type_ == frames.ACK:
            self._ack(leg, leg.peer, value, frames.ack_limit(payload), fin=bool(flags & frames.FIN_ARRIVED))
        if code:
            self._violated(leg, code, now)

    def reset_peer(self, leg: Leg, code: str, text: str) -> None:
        """End the stream with the reason that one end gave, and tell the other end."""
        peer = leg.peer
        self._opens.close(leg.route, code)
        if peer is not None:
            peer.session.outbox.send(reset_frame(peer.number, code, text))
            self._touched.add(peer.session)

    def leg_lost(self, leg: Leg, now: float) -> None:
        """A leg's session is gone: tell the other end, so that it attaches the stream again."""
        route, peer = leg.route, leg.peer
        if route.state is RouteState.OPEN and peer is not None:
            self._opens.forget(route)
            peer.session.outbox.send(frames.frame(frames.GONE, peer.number))
            self._touched.add(peer.session)
        elif leg is route.host:
            self._opens.host_failed(route, "host_timeout", "The host's session was lost.", now)
        else:
            self._opens.cancel(leg)

    # --- inner ---------------------------------------------------------------------------------

    def _ack(self, leg: Leg, peer: Leg, received: int, limit: int, *, fin: bool) -> None:
        if received <= peer.acked and limit <= peer.limit and leg.spoke and not (fin and not peer.fin_acked):
            leg.session.effort.idle += 1
        elif peer.next == leg.reached and leg.spoke:
            leg.session.effort.asks += _ACK
        leg.spoke = True
        leg.reached = peer.next
        peer.acked = max(peer.acked, received)
        peer.forward_ack(received, limit, fin=fin)
        self._touched.add(peer.session)
        if fin:
            peer.fin_acked = True
            if leg.fin_acked:  # both ends have confirmed each other's end: nothing more will come
                self._opens.finish(leg.route)

    def _may_pass(self, leg: Leg, start: int, end: int, now: float) -> bool:
        """Check DATA that does not simply continue the stream.

        Known bytes are dropped. DATA that breaks the rules resets the stream. Returns whether to pass the frame on.
        """
        if leg.peer is None:
            self._violated(leg, "protocol_error", now)
        elif end > leg.limit:
            self._violated(leg, "credit_exceeded", now)
        elif start > leg.next and not leg.resumed and start > leg.acked:
            self._violated(leg, "offset_mismatch", now)
        elif end > leg.next:
            if leg.resumed:
                leg.resumed = False
                leg.first = max(leg.first, start)
            return True
        else:
            leg.session.effort.idle += 1
        return False

    def _violated(self, leg: Leg, code: str, now: float) -> None:
        """An agent broke a rule of one stream: reset the stream at both ends. The session goes on."""
        route = leg.route
        text = "The relay saw a frame that breaks the stream's rules."
        leg.session.outbox.send(reset_frame(leg.number, code, text))
        self._touched.add(leg.session)
        if route.state is RouteState.OPEN:
            self.reset_peer(leg, code, text)
        elif leg is route.host:
            self._opens.host_failed(route, code, text, now)
        else:
            self._opens.cancel(leg)
