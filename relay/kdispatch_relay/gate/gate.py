"""The gate: upgrades connections, runs the switch's clock, and does all socket I/O for it."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from aiohttp import web

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.session.aio.alarm import Alarm
from kdispatch_protocol.session.aio.carrier import read_buffer
from kdispatch_protocol.session.aio.link import Link
from kdispatch_protocol.session.aio.sockets import tune_session_socket
from kdispatch_protocol.session.aio.turns import Turns
from kdispatch_protocol.tokens import token_id
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer, Frame
from kdispatch_protocol.wire.messages import Goaway
from kdispatch_relay.api.keys import LIMITER
from kdispatch_relay.auth import Authority
from kdispatch_relay.door.arrivals import Arrival
from kdispatch_relay.door.http_connection import COUNTED, SOURCE, hand_over
from kdispatch_relay.gate.access import Access
from kdispatch_relay.gate.handshake import take_over, upgrade_headers
from kdispatch_relay.limiter import SessionLimits
from kdispatch_relay.room import queue_memory
from kdispatch_relay.switch.drain import Drain
from kdispatch_relay.switch.intents import AttachRefused, StreamEnded
from kdispatch_relay.switch.revocations import withdraw_host
from kdispatch_relay.switch.sessions import Session
from kdispatch_relay.switch.state import clients_of, state_of
from kdispatch_relay.switch.switch import Switch
from kdispatch_relay.switch.views import ClientView, HostView, Left, LiveHost, RelayState
from kdispatch_relay.version import version

__all__ = ["Gate"]

# Until its HELLO, an agent may make the relay keep this many bytes at most for one message.
_HELLO_MESSAGE: Final = 16 * 1024
# While it drains, the relay reports what is left, once in this many seconds. Without a session it checks more often.
_TELL: Final = 1.0
_LOOK: Final = 0.020
_NOBODY: Final = Left(0, 0, 0)
# Attempts at other agents' streams are logged as a warning once in this many seconds.
_ATTEMPTS: Final = 60.0
# Ends that an operator need not hear of.
_ORDERLY: Final = frozenset({"drain", "superseded"})
# When a read brings several frames, those below this size are gathered: a system call for each costs more than a copy.
_LARGE: Final = 4 * 1024
# If a read brings at most this many frames, an OPEN goes to its host before the rest: 5 % more opens with one worker.
_FEW: Final = 3
_log = logging.getLogger("kdispatch.relay")


class Gate:
    """Agents' sessions, from upgrade to end. Create it on the event loop that it will run on."""

    def __init__(self, authority: Authority, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._timed_out)
        self.buffer = read_buffer()
        self.turns = Turns()
        self._began = time.time()
        self._started = self._began - self._loop.time()  # monotonic times become unix seconds
        self.switch = Switch(
            "",
            secrets.randbelow,
            self._loop.time(),
            limits=limits,
            memory=queue_memory(),
            program=f"kdispatch/{version()}",
        )
        self._links: dict[Session, _AgentLink] = {}
        self._access = Access(authority, self.switch, self.settle, self._limits_of)
        self._closing = True
        self._drain: Drain | None = None
        self._cuts: Counter[str] = Counter()  # sessions that this end ended, by code
        self._warn_again = 0.0

    async def start(self, relay_id: str) -> None:
        """Begin to accept sessions, as the relay with this id."""
        self.switch.relay_id = relay_id
        if _log.isEnabledFor(logging.DEBUG):
            self.switch.opens.reports = []
        self._closing = False

    def hosts_of(self, service: str, *, after: str = "", limit: int | None = None) -> list[HostView]:
        """The live hosts of a service, sorted by id: ``limit`` of those after ``after``."""
        listed = [host for host in self.switch.registry.hosts_of(service) if host.id > after]
        return [
            HostView(
                host=host.id,
                since=host.since + self._started,
                labels=host.labels,
                streams=host.streams,
                source=host.session.source,
                token=None if host.rests is None else token_id(host.rests),
            )
            for host in sorted(listed, key=lambda host: host.id)[:limit]
        ]

    def count_hosts(self, service: str) -> int:
        """How many live hosts a service has."""
        entry = self.switch.registry.get(service)
        return len(entry.hosts) if entry is not None else 0

    def host(self, host_id: str) -> LiveHost | None:
        """The live host of this id."""
        host = self.switch.registry.host(host_id)
        return LiveHost(service=host.service, digest=host.digest) if host else None

    def recheck(self, scope: str) -> None:
        """Rights within ``handle/name``, or within a whole handle, may have ended: check again what runs there."""
        self._access.recheck(scope)

    def recheck_all(self) -> None:
        """Check again every account that has something running here."""
        for handle in self.switch.registry.handles:
            self._access.recheck(handle)

    def expire(self, now: float) -> None:
        """Check again the services where a token in use has expired by ``now``, in unix seconds."""
        self._access.expire(now)

    def clients_of(
        self, service: str, *, after: tuple[str, str, str] = ("", "", ""), limit: int | None = None
    ) -> list[ClientView]:
        """The clients with open streams of a service, sorted by place: ``limit`` of those after ``after``."""
        return clients_of(self.switch, service, self._started, after, limit)

    def withdraw(self, host_id: str) -> None:
        """Take a live host off the list for good."""
        host = self.switch.registry.host(host_id)
        if host is not None:
            withdraw_host(self.switch, host)
            self.settle()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """``GET /api/v1/tunnel``: upgrade, and start a session. The session outlives the request."""
        if self._closing:
            raise KdispatchError("busy", "The relay is shutting down.")
        with SessionLimits(request.app.get(LIMITER), request.get(COUNTED, "")) as limits:
            response = web.StreamResponse(status=101, headers=upgrade_headers(request))
            response.force_close()
            await response.prepare(request)
            transport = request.transport
            if transport is None or self._closing:
                return response
            tune_session_socket(transport.get_extra_info("socket"))
            link = _AgentLink(self, request.get(SOURCE, request.remote or ""), hand_over(request), limits.kept())
            link.start(transport, take_over(request))
        return response

    def state(self) -> RelayState:
        """The relay's current state in figures."""
        return state_of(self.switch, self._links, since=self._began, draining=self._drain is not None, cuts=self._cuts)

    async def drain(self, seconds: float, tell: Callable[[Left], None], arriving: asyncio.Future[None]) -> Left:
        """Ask every agent to move, and wait for up to ``seconds`` until all have; returns what has not left.

        More agents may come until ``arriving`` is done. ``tell`` gets what is left, if there is anything; afterwards
        once a second, if it has changed.
        """
        drain = self._drain = Drain(self.switch, self._links, seconds, self._loop.time())
        self.settle()
        told: Left | None = None
        while (rest := drain.ends - self._loop.time()) > 0 and (self._links or not arriving.done()):
            left = drain.left()
            if left != (told or _NOBODY):
                told = left
                tell(left)
            waiting = [link.over for link in self._links.values()]
            await asyncio.wait(waiting or [arriving], timeout=min(_TELL if waiting else _LOOK, rest))
        return drain.left()

    async def close(self) -> None:
        """Tell every agent to move, and end all sessions."""
        self._closing = True
        # Clients first: an unanswered OPEN is then repeated elsewhere, instead of failing because its host left.
        for link in sorted(self._links.values(), key=lambda link: bool(link.session.offers)):
            link.cut("drain", "The relay is shutting down.")
        waiting = [link.over for link in self._links.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=3)
        for link in list(self._links.values()):
            link.link.abort("drain", "")
        await self._access.close()
        self._alarm.cancel()

    def _limits_of(self, session: Session) -> SessionLimits | None:
        link = self._links.get(session)
        return None if link is None else link.limits

    # --- between the switch and the links ------------------------------------------------------

    def joined(self, link: _AgentLink) -> None:
        """A session begins."""
        self._links[link.session] = link

    def left(self, link: _AgentLink, code: str) -> None:
        """A session's connection is gone. ``code`` says why this end ended it; empty if it did not."""
        if code:
            self._cuts[code] += 1
        if self._links.pop(link.session, None) is not None:
            self.switch.disconnect(link.session, self._loop.time())
            self.settle()

    def settle(self) -> None:
        """Carry out what the switch has decided: ask, cut, send, and set the clock. To be called after each change."""
        switch = self.switch
        for question in switch.take_questions():
            self._access.ask(question)
        while True:
            touched, cuts = switch.take_touched(), switch.take_cuts()
            if not touched and not cuts:
                break
            for cut in cuts:
                link = self._links.get(cut.session)
                if link is not None:
                    link.cut(cut.code, cut.text)
            for session in touched:
                link = self._links.get(session)
                if link is not None:
                    link.link.flush()
        if switch.opens.connected:
            self._access.note_clients(switch.opens.connected)
        if switch.opens.reports:
            self._log_streams(switch.opens.reports)
        if switch.attachments.reports:
            self._log_refusals(switch.attachments.reports)
        self._alarm.set(switch.next_deadline())

    def _log_streams(self, reports: list[StreamEnded]) -> None:
        now = self._loop.time()
        for ended in reports:
            fields = asdict(ended)
            fields["seconds"] = round(now - fields.pop("began"), 3)
            _log.debug("stream ended", extra=fields)
        reports.clear()

    def _log_refusals(self, reports: list[AttachRefused]) -> None:
        now = self._loop.time()
        for refused in reports:
            # bad_proof: an agent tried another's stream. The other codes: a stream has ended. Agents can cause many.
            tell = refused.code == "bad_proof" and now >= self._warn_again
            if tell:
                self._warn_again = now + _ATTEMPTS
            _log.log(logging.WARNING if tell else logging.DEBUG, "An attach was refused.", extra=asdict(refused))
        reports.clear()

    def _timed_out(self) -> None:
        self.switch.handle_timeout(self._loop.time())
        self.settle()


class _AgentLink:
    """One agent's session, as the owner of its link."""

    def __init__(
        self, gate: Gate, source: str, arrival: Arrival | None = None, limits: SessionLimits | None = None
    ) -> None:  # fmt: skip
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self.limits = limits or SessionLimits(None, "")
        self.session = gate.switch.connect(source, self._loop.time(), self.limits, group=self.limits.source)
        self._unsettled = False  # this read has changed something at the switch
        self._passed = False  # this read has tried to pass a frame on at once
        self.link_pass_on = functools.partial(gate.switch.pass_on, self.session)
        self.link = Link(
            self, gate.limits, server=True, buffer=gate.buffer, max_message=_HELLO_MESSAGE, carries=self.session.legs,
            turn=functools.partial(gate.turns.take, self.limits.source or source),
        )  # fmt: skip
        self.session.send_data = self.link.carrier.send_data
        self.session.flush = self.link.flush
        self._arrival = arrival  # until HELLO
        if arrival is not None:
            arrival.drop = functools.partial(self.link.abort, "", "")

    def start(self, transport: asyncio.Transport, tail: bytes) -> None:
        """Take over the connection."""
        self._gate.joined(self)
        self.link.carrier.attach(transport, tail)

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

    def link_frames(self, received: list[Frame], now: float) -> None:
        """Handle frames from the agent."""
        # Large DATA goes on at once, frame by frame, and so does the first frame if it comes alone.
        place = 0
        for type_, flags, number, value, payload in received:
            if type_ != frames.DATA or (len(payload) < _LARGE and (self._passed or len(received) > 1)):
                break
            self._passed = True
            if not self.link_pass_on(flags, number, value, payload):
                break
            place += 1
        if place:
            received = received[place:]
            if not received:
                return
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
        self._gate.settle()  # the link reads no more, so link_read() will not settle

    def link_idle(self, count: int, now: float) -> None:
        """Count WebSocket frames without a message."""
        self._unsettled = True
        self.session.effort.idle += count
        self._gate.switch.settle_effort(self.session, now)

    def link_pieces(self, count: int, received: list[Frame], now: float) -> None:
        """Small pieces cost as much as idle frames, but not those of a running stream's data."""
        if received[0][0] != frames.DATA or received[0][2] not in self.session.legs:
            self.link_idle(count, now)

    def link_read(self) -> None:
        """A read was handled: send what it caused, to all sessions."""
        self._passed = False
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

    def link_unsent(self, size: int) -> None:
        """Note the bytes that the socket has not taken."""
        self.session.note_unsent(size)

    def link_collect(self, most: int, now: float) -> list[Buffer]:
        """The next batch to send."""
        return self.session.outbox.collect(most, now)

    def link_ask(self) -> None:
        """Probe the agent after this process was stopped for a while."""
        self.session.outbox.send(frames.frame(frames.PING))

    def link_lost(self, code: str, text: str) -> None:
        """The connection is gone."""
        self._arrived()
        self.limits.end()
        self.session.send_data = self.session.flush = None
        if code and self.session.process and code not in _ORDERLY:
            _log.warning("A session ended: %s: %s", code, text, extra=self._fields())
        elif self.session.process:
            _log.debug("session ended", extra=self._fields() | {"code": code or "closed"})
        self._gate.left(self, code)
        if not self.over.done():
            self.over.set_result(None)
