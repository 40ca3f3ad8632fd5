"""The gate: upgrades connections, runs the switch's clock, and does all socket I/O for it."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from aiohttp import web

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.session.aio.alarm import Alarm
from kdispatch_protocol.session.aio.carrier import Carrier
from kdispatch_protocol.session.aio.sockets import tune_session_socket
from kdispatch_protocol.session.aio.turns import Turns
from kdispatch_protocol.session.aio.websocket_carrier import WebSocketCarrier, read_buffer
from kdispatch_protocol.tokens import token_id
from kdispatch_relay.api.keys import LIMITER
from kdispatch_relay.auth import Authority
from kdispatch_relay.door.arrivals import Arrival
from kdispatch_relay.door.http_connection import COUNTED, SOURCE, hand_over
from kdispatch_relay.gate.access import AccessControl
from kdispatch_relay.gate.agent_link import AgentLink
from kdispatch_relay.gate.handshake import take_over, upgrade_headers
from kdispatch_relay.limiter import SessionLimits
from kdispatch_relay.room import queue_memory
from kdispatch_relay.switch.drain import Drain
from kdispatch_relay.switch.intents import (
    AskAttach,
    AskOffer,
    AskOpen,
    CutSession,
    FirstStream,
    Intent,
    RefusedAttach,
    StreamEnded,
)
from kdispatch_relay.switch.revocations import withdraw_host
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.state import clients_of, state_of
from kdispatch_relay.switch.switch import Switch
from kdispatch_relay.switch.views import ClientView, HostView, Left, LiveHost, RelayState
from kdispatch_relay.version import version

__all__ = ["Gate"]

# While it drains, the relay reports what is left, once in this many seconds. Without a session it checks more often.
_TELL: Final = 1.0
_LOOK: Final = 0.020
_NOBODY: Final = Left(0, 0, 0)
# Attempts at other agents' streams are logged as a warning once in this many seconds.
_ATTEMPTS: Final = 60.0
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
        self._links: dict[SwitchSession, AgentLink] = {}
        self._access = AccessControl(authority, self.switch, self.settle, self._limits_of)
        ask = self._access.ask
        self._acts: dict[type, Callable[[Any], None]] = {
            AskOffer: ask,
            AskOpen: ask,
            AskAttach: ask,
            CutSession: self._end,
        }
        self._reports: dict[type, Callable[[Any], None]] = {
            FirstStream: self._access.note_client,
            StreamEnded: self._log_stream,
            RefusedAttach: self._log_refusal,
        }
        self._closing = True
        self._drain: Drain | None = None
        self._warn_again = 0.0

    async def start(self, relay_id: str) -> None:
        """Begin to accept sessions, as the relay with this id."""
        self.switch.relay_id = relay_id
        if _log.isEnabledFor(logging.DEBUG):
            self.switch.opens.reports = True
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
            arrival = hand_over(request)  # before take_over, which ends the arrival with the request
            make = functools.partial(
                WebSocketCarrier,
                server=True,
                transport=transport,
                early=take_over(request),
                buffer=self.buffer,
                max_message=self.limits.message,
            )
            self.join(make, request.get(SOURCE, request.remote or ""), arrival, limits.kept())
        return response

    def join(
        self,
        make: Callable[..., Carrier],
        source: str,
        arrival: Arrival | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        """Let a session begin over the carrier that ``make`` makes; see :class:`AgentLink`. It ends by itself."""
        AgentLink(self, make, source, arrival, limits).start()

    def state(self) -> RelayState:
        """The relay's current state in figures."""
        return state_of(self.switch, self._links, since=self._began, draining=self._drain is not None)

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

    def _limits_of(self, session: SwitchSession) -> SessionLimits | None:
        link = self._links.get(session)
        return None if link is None else link.limits

    # --- between the switch and the links ------------------------------------------------------

    def joined(self, link: AgentLink) -> None:
        """A session begins."""
        self._links[link.session] = link

    def left(self, link: AgentLink, code: str) -> None:
        """A session's connection is gone. ``code`` says why this end ended it; empty if it did not."""
        if code:
            self.switch.counters.cut(code)
        if self._links.pop(link.session, None) is not None:
            self.switch.disconnect(link.session, self._loop.time())
            self.settle()

    def settle(self) -> None:
        """Do what the switch wants: ask and cut, then send, then report; set the clock. Call it after each change."""
        switch = self.switch
        intents, links = switch.intents, self._links
        reports: list[Intent] = []
        while switch.touched or intents.waiting:
            touched = switch.take_touched()
            if intents.waiting:
                for intent in intents.take_all():
                    act = self._acts.get(type(intent))
                    if act is None:
                        reports.append(intent)
                    else:
                        act(intent)
            for session in touched:
                link = links.get(session)
                if link is not None:
                    link.link.flush()
        for report in reports:
            self._reports[type(report)](report)
        due = switch.timers.next_deadline()
        if due is not None and due < self._alarm.at:
            self._alarm.set(due)

    def _end(self, cut: CutSession) -> None:
        link = self._links.get(cut.session)
        if link is not None:
            link.cut(cut.code, cut.text)

    def _log_stream(self, ended: StreamEnded) -> None:
        fields = asdict(ended)
        fields["seconds"] = round(self._loop.time() - fields.pop("began"), 3)
        _log.debug("stream ended", extra=fields)

    def _log_refusal(self, refused: RefusedAttach) -> None:
        now = self._loop.time()
        # bad_proof: an agent tried another's stream. The other codes: a stream has ended. Agents can cause many.
        tell = refused.code == "bad_proof" and now >= self._warn_again
        if tell:
            self._warn_again = now + _ATTEMPTS
        _log.log(logging.WARNING if tell else logging.DEBUG, "An attach was refused.", extra=asdict(refused))

    def _timed_out(self) -> None:
        self.switch.handle_timeout(self._loop.time())
        self.settle()
