"""The driver of one session, the same at both ends: carrier, batches, liveness.

Everything happens in callbacks of the event loop: no task, no queue and no
await per frame.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.aio.alarm import Alarm
from kdispatch_protocol.session.aio.carrier import MakeCarrier
from kdispatch_protocol.session.liveness import Course, Cut, Liveness, Verdict
from kdispatch_protocol.session.pace import Pace
from kdispatch_protocol.wire.frames import Buffer, Frame, FrameReader, decode
from kdispatch_protocol.wire.websocket import Closing

__all__ = ["Link", "LinkOwner"]

# A flush gives at most this many batches to the socket before other sessions get their turn.
_BATCHES: Final = 8
# RFC 6455 close codes, for a normal end of a session and for an end with an error code.
_NORMAL: Final = 1000
_POLICY: Final = 1008
_DEAD: Final = ("", "Nothing was heard from the other end.")
# An agent's machine may sleep, and its monotonic clock stops with it. Only the wall clock shows that, so it is checked
# at this interval in seconds. A larger step than this puts the other end in doubt; if a user set the clock, that costs
# one PING.
_CLOCK_EVERY: Final = 5.0
_CLOCK_STEP: Final = 2.0
# A smaller piece of an incomplete message counts as one too many: a read has at most two of them, at its edges.
_DRIBBLE: Final = 256
# Checks of a full socket within the time after which it is cut.
_LOOKS: Final = 4


class LinkOwner(Protocol):
    """The owner of a session. Its methods run in the event loop."""

    def link_read(self, received: list[Frame], now: float) -> None:
        """Handle the frames of one read, maybe none, and send what they cause. Their payloads may be reused afterwards.

        Raises ``RemoteProtocolError`` for a violation; ``link_violated`` follows.
        """
        ...

    def link_read_fast(self, flags: int, number: int, value: int, payload: Buffer, /) -> bool:
        """Fast path of :meth:`link_read`, for a read that is one DATA. False changes nothing; ``link_read`` follows."""
        ...

    def link_violated(self, code: str, text: str) -> None:
        """The other end broke the protocol: close the link."""
        ...

    def link_idle(self, count: int, now: float) -> None:
        """``count`` WebSocket frames, or reads, brought no byte of a message."""
        ...

    def link_pieces(self, count: int, received: list[Frame], now: float) -> None:
        """The message of these frames, which follow, had ``count`` small pieces before its last one."""
        ...

    def link_unsent(self, size: int) -> None:
        """``size`` bytes were given to the socket but not taken; 0 when it has taken all."""
        ...

    def link_collect(self, most: int, now: float) -> list[Buffer]:
        """Return the next batch of frames, about ``most`` bytes; with fewer, nothing else is queued."""
        ...

    def link_ask(self) -> None:
        """Queue a PING, because the other end is silent."""
        ...

    def link_lost(self, code: str, text: str) -> None:
        """Handle the end of the session. Called once; ``code`` is empty if there is none."""
        ...


class Link:
    """A session's carrier, with its batches and its liveness checks.

    Its inputs come from the carrier (:class:`CarrierOwner`). The owner calls :meth:`flush` at the end of a read, and
    :meth:`wake` when it has queued frames at any other time.
    """

    def __init__(
        self, owner: LinkOwner, limits: Limits, make: MakeCarrier, *, server: bool, ping: float | None = None
    ) -> None:
        """``make`` makes the carrier, which the caller starts.

        ``ping`` is the silence in seconds after which an agent sends a PING; the default is that of the limits.
        """
        self._owner = owner
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(limits)
        self._held = self._pace.batch  # unsent bytes allowed in the kernel
        now = self._loop.time()
        self._frames = FrameReader()
        self._received: list[Frame] = []  # frames of the current read
        self._small = 0  # small pieces of the current message
        self.partial = 0  #: bytes held of an incomplete message
        ping = ping or limits.ping
        self._liveness = Liveness(None, limits.dead_relay, now) if server else Liveness(ping, limits.dead_agent, now)
        self._server = server
        self._began = self._looked = now
        self._ended: Course | None = None
        self._wall = time.time() - now  # offset of the wall clock from the monotonic clock
        self._wake_handle: asyncio.Handle | None = None
        self._alarm = Alarm(self._loop, self._look)
        self._full_since = now
        self._full_looked = now
        self._full_unsent = 0
        self._verdict: tuple[str, str] | None = None  # why this end closed the session
        self._over = False
        self.carrier = make(self)
        self.carrier.read_fast = owner.link_read_fast
        self._arm()

    def bear_silence(self, seconds: float) -> None:
        """From now on, tolerate this much silence of the other end."""
        self._liveness.bear(seconds)
        self._arm()

    def wake(self) -> None:
        """Schedule one flush in this turn of the loop."""
        if self._wake_handle is None and not self._over:
            self._wake_handle = self._loop.call_soon(self._woken)

    def _woken(self) -> None:
        self._wake_handle = None
        self.flush()

    def flush(self) -> None:
        """Send now what the socket takes."""
        carrier = self.carrier
        now = self._loop.time()
        for _ in range(_BATCHES):
            if carrier.full or not carrier.open:
                return
            most = self._pace.batch
            parts = self._owner.link_collect(most, now)
            if not parts:
                return
            if carrier.send(parts) < most:  # the batch is not full, so nothing else is queued
                return
        if not carrier.full:
            self._pace.never_full()
            self._hold()
        self.wake()

    def close(self, code: str, text: str = "") -> None:
        """End the session in order: send what is queued, then a close frame with the code.

        A full socket gets one more batch only; control frames come first in it.
        """
        if self._verdict is None:
            self._verdict = (code, text)
            if not self.carrier.full:
                self.flush()
            elif parts := self._owner.link_collect(self._pace.batch, self._loop.time()):
                self.carrier.send(parts)
            self.carrier.close(_POLICY if code else _NORMAL, code)

    def abort(self, code: str, text: str) -> None:
        """End the session at once, without a close frame."""
        if self._verdict is None:
            self._verdict = (code, text)
        self.carrier.abort()

    # --- the carrier's owner ------------------------------------------------------------------

    def receive_piece(self, piece: Buffer, *, ends: bool) -> None:
        """Decode a piece of a message. Its frames wait for :meth:`receive_end`: the whole read must be valid."""
        if self._verdict is not None:
            return
        try:
            received = self._frames.receive(piece, ends=ends)
        except RemoteProtocolError as error:
            self._received = []
            self._owner.link_violated(error.code, error.text)
            return
        self.partial = self._frames.partial
        if not received:
            if len(piece) < _DRIBBLE:
                self.carrier.found += 1
                self._small += 1
            return
        self.carrier.found += len(received)
        if self._small:
            count, self._small = self._small, 0
            self._owner.link_pieces(count, received, self._loop.time())
        self._received = self._received + received if self._received else received

    def receive_message(self, message: Buffer) -> None:
        """Pass the frames of a read that is one whole message to the owner, which answers them.

        It says the same as :meth:`receive_piece` and :meth:`receive_end`, with three calls less. An open is six such
        reads for a relay. tests/aio/test_short_messages.py::test_a_whole_message_is_taken_the_same_either_way
        """
        if self._verdict is not None:
            return
        try:
            self._owner.link_read(decode(message), self._loop.time())
        except RemoteProtocolError as error:
            self._owner.link_violated(error.code, error.text)

    def handle_idle(self, count: int) -> None:
        """WebSocket frames, or a read, brought no byte of a message."""
        if self._verdict is None:
            self._owner.link_idle(count, self._loop.time())

    def receive_end(self) -> None:
        """All pieces of one read were delivered: pass its frames to the owner, which answers them."""
        received, self._received = self._received, []
        if self._verdict is not None:
            return
        try:
            self._owner.link_read(received, self._loop.time())
        except RemoteProtocolError as error:
            self._owner.link_violated(error.code, error.text)

    def may_send(self, size: int) -> bool:
        """A slow socket gets at most one batch at once."""
        return size <= self._pace.batch

    def handle_filled(self) -> None:
        """The socket is full: measure its rate, and start to watch it."""
        carrier = self.carrier
        now = self._loop.time()
        self._full_since = self._full_looked = now
        self._full_unsent = carrier.unsent
        self._pace.filled(carrier.given - self._full_unsent, now)
        self._owner.link_unsent(self._full_unsent)
        self._arm()

    def handle_drained(self) -> None:
        """The socket took everything."""
        self._owner.link_unsent(0)
        self._pace.drained(self._loop.time())
        self._hold()
        self.flush()

    def _hold(self) -> None:
        """Control frames wait behind unsent bytes in the kernel: limit those to one batch."""
        batch = self._pace.batch
        if 4 * abs(batch - self._held) > self._held:  # a small change is not worth a system call
            self._held = batch
            self.carrier.hold_unsent(batch)

    def handle_lost(self, closing: Closing | None, error: Exception | None) -> None:
        """The connection is gone."""
        self._over = True
        if not self._server:
            self._ended = self._look_back(closing, error)
        self._alarm.cancel()
        if self._wake_handle is not None:
            self._wake_handle.cancel()
        if self._verdict is not None:
            code, text = self._verdict
        elif closing is not None and not closing.by_peer:
            code, text = "protocol_error", closing.reason
        elif closing is not None:
            code, text = "", f"The other end closed the session: {closing.reason or closing.code}."
        else:
            code, text = "", _lost(error)
        self._owner.link_lost(code, text)

    # --- time -------------------------------------------------------------------------------------

    @property
    def course(self) -> Course:
        """Record of an agent's session, ended or running."""
        return self._ended or Course(self._loop.time() - self._began, self._liveness.survived, 0.0, None)

    def _look_back(self, closing: Closing | None, error: Exception | None) -> Course:
        now = self._loop.time()
        stood_still = now - self._looked > _CLOCK_EVERY + _CLOCK_STEP or self._clock_stepped(now)
        self._note_messages()
        live = self._liveness
        cut = None
        if self._verdict == _DEAD:
            cut = Cut.UNANSWERED
        elif self._verdict is None and closing is None and (error is None or isinstance(error, ConnectionError)):
            cut = Cut.CLOSED  # not for errors such as "no route to host": those come from the network itself
        if stood_still or live.unsure:
            cut = None
        return Course(now - self._began, live.survived, 0.0 if cut is None else live.silence(now, cut), cut)

    def _note_messages(self) -> None:
        carrier = self.carrier
        self._liveness.passed(carrier.arrived, carrier.sent)
        carrier.arrived = carrier.sent = None

    def _arm(self) -> None:
        """Set the alarm for the next check of the other end's silence, or of a full socket."""
        if self._over:
            return
        self._alarm.set(self._liveness.next_deadline())
        if not self._server:
            self._alarm.set(self._loop.time() + _CLOCK_EVERY)
        if self.carrier.full:
            self._alarm.set(self._loop.time() + self._limits.slow_consumer / _LOOKS)

    def _clock_stepped(self, now: float) -> bool:
        """Whether the wall clock jumped against the monotonic one: the machine slept, or the clock was set."""
        before, self._wall = self._wall, time.time() - now
        return not self._server and abs(self._wall - before) > _CLOCK_STEP

    def _look(self) -> None:
        now = self._loop.time()
        # Pending bytes must be read before a verdict, so the check runs in the loop's next turn.
        self._loop.call_soon(self._judge, now)

    def _judge(self, now: float) -> None:
        if self._over:
            return
        if self.carrier.full:
            unsent = self.carrier.unsent
            rested = now - self._full_looked > 2 * self._limits.slow_consumer / _LOOKS  # this process was stopped
            self._full_looked = now
            if unsent < self._full_unsent or rested:
                self._full_since, self._full_unsent = now, unsent
            elif now - self._full_since >= self._limits.slow_consumer:
                self.abort("slow_consumer", "The socket took no byte for too long.")
                return
        heard, self.carrier.heard = self.carrier.heard, None
        if heard is not None:  # any byte is life
            self._liveness.heard(heard)
        if not self._server:
            self._note_messages()
        self._looked = now
        verdict = self._liveness.check(now)
        if self._clock_stepped(now) and verdict is Verdict.ALIVE:
            self._liveness.doubt(now)
            verdict = Verdict.ASK
        if verdict is Verdict.DEAD:
            self.abort(*_DEAD)
            return
        if verdict is Verdict.ASK:
            self._owner.link_ask()
            self.wake()
        self._arm()


def _lost(error: Exception | None) -> str:
    """One sentence about the end of a connection. System errors have a number in their text, or no text at all."""
    if error is None:
        return "The connection was closed."
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"The connection was lost: {words.rstrip('.')}."
