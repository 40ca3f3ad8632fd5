"""One agent's session at the gate: what its link hears goes to the switch, and the switch's frames go to its link."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kdispatch_protocol.session.aio.carrier import Carrier
from kdispatch_protocol.session.aio.link import Link
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Frame
from kdispatch_protocol.wire.messages import Goaway
from kdispatch_relay.door.arrivals import Arrival
from kdispatch_relay.limiter import SessionLimits

if TYPE_CHECKING:
    from kdispatch_relay.gate.gate import Gate

__all__ = ["AgentLink"]

# Until its HELLO, an agent may make the relay keep this many bytes at most for one message.
_HELLO_MESSAGE: Final = 16 * 1024
# Ends that an operator need not hear of.
_ORDERLY: Final = frozenset({"drain", "superseded"})
# When a read brings several frames, those below this size are gathered: a system call for each costs more than a copy.
_LARGE: Final = 4 * 1024
# If a read brings at most this many frames, an OPEN goes to its host before the rest: 5 % more opens with one worker.
_FEW: Final = 3
_log = logging.getLogger("kdispatch.relay")


class AgentLink:
    """One agent's session, as the owner of its link."""

    def __init__(
        self,
        gate: Gate,
        make: Callable[..., Carrier],
        source: str,
        arrival: Arrival | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        """``make`` makes the carrier: it gets its owner, and as keywords what the session carries and its turns."""
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self.limits = limits or SessionLimits(None, "")
        self.session = gate.switch.connect(source, self._loop.time(), self.limits, group=self.limits.source)
        self._unsettled = False  # this read has changed something at the switch
        # Fast path of `link_read`, for a read that is one DATA; `link_read` uses it, too.
        self.link_read_fast = functools.partial(gate.switch.passing.data_fast, self.session)
        self.link_collect = self.session.outbox.collect
        turn = functools.partial(gate.turns.take, self.limits.source or source)
        made = functools.partial(make, carries=self.session.legs, turn=turn)
        self.link = Link(self, gate.limits, made, server=True)
        self.link.carrier.limit_messages(_HELLO_MESSAGE)
        self.session.send_fast = self.link.carrier.send_fast
        self.session.flush = self.link.flush
        self._arrival = arrival  # until HELLO
        if arrival is not None:
            arrival.drop = functools.partial(self.link.abort, "", "")

    def start(self) -> None:
        """Begin to read and to send."""
        self._gate.joined(self)
        self.link.carrier.start()

    def cut(self, code: str, text: str) -> None:
        """Send the reason, and end the session. Its streams are released at once."""
        goaway = Goaway(code=code, text=text)
        self.session.outbox.send(frames.frame(frames.GOAWAY, payload=goaway.encode()))
        self.link.close(code, text)
        self._gate.switch.disconnect(self.session, self._loop.time())

    def _arrived(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            arrival.ends()

    def _fields(self) -> dict[str, str]:
        return {"agent": self.session.process, "source": self.session.source}

    # --- the link's owner ---------------------------------------------------------------------

    def link_read(self, received: list[Frame], now: float) -> None:
        """Handle the frames of one read, and send what they cause, to all sessions."""
        # Large DATA goes on at once, frame by frame, and so does a frame that comes alone.
        place = 0
        if received and received[0][0] == frames.DATA:
            for type_, flags, number, value, payload in received:
                if type_ != frames.DATA or (len(payload) < _LARGE and len(received) > 1):
                    break
                if not self.link_read_fast(flags, number, value, payload):
                    break
                place += 1
        if place < len(received):
            self._receive(received[place:] if place else received, now)
        switch, partial = self._gate.switch, self.link.partial
        if partial != self.session.partial:
            self.session.note_partial(partial)
            if switch.budget.spent:
                switch.make_room()
                self._unsettled = True
        if self._unsettled:
            self._unsettled = False
            self._gate.settle()
            effort = self.session.effort
            if effort.rest:
                self.link.carrier.rest(effort.rest)
                effort.rest = 0.0

    def _receive(self, received: list[Frame], now: float) -> None:
        """The general path: what the frames change at the switch is settled at the end of the read."""
        self._unsettled = True
        greeted = bool(self.session.process)
        self._gate.switch.opens.few = len(received) <= _FEW
        self._gate.switch.receive_frames(self.session, received, now)
        if not greeted and self.session.process:
            if not self.session.quiet:
                self._arrived()
            elif self._arrival is not None:
                self._arrival.carries_nothing()
            _log.debug("session began", extra=self._fields())
            self.link.carrier.limit_messages(self._gate.limits.message)
            if self.session.quiet:
                self.link.bear_silence(self._gate.limits.quiet)

    def link_violated(self, code: str, text: str) -> None:
        """The agent broke the protocol: send it the reason, and cut the session."""
        self.cut(code, text)
        self._gate.settle()  # the link reads no more, and link_read() has not settled

    def link_idle(self, count: int, now: float) -> None:
        """Count WebSocket frames without a message."""
        self._unsettled = True
        self.session.effort.idle += count
        self._gate.switch.settle_effort(self.session, now)

    def link_pieces(self, count: int, received: list[Frame], now: float) -> None:
        """Small pieces cost as much as idle frames, but not those of a running stream's data."""
        if received[0][0] != frames.DATA or received[0][2] not in self.session.legs:
            self.link_idle(count, now)

    def link_unsent(self, size: int) -> None:
        """Note the bytes that the socket has not taken."""
        self.session.note_unsent(size)

    def link_ask(self) -> None:
        """Probe the agent after this process was stopped for a while."""
        self.session.outbox.send(frames.frame(frames.PING))

    def link_lost(self, code: str, text: str) -> None:
        """The connection is gone."""
        self._arrived()
        self.limits.end()
        self.session.send_fast = self.session.flush = None
        if code and self.session.process and code not in _ORDERLY:
            _log.warning("A session ended: %s: %s", code, text, extra=self._fields())
        elif self.session.process:
            _log.debug("session ended", extra=self._fields() | {"code": code or "closed"})
        self._gate.left(self, code)
        if not self.over.done():
            self.over.set_result(None)
