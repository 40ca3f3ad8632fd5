"""OPEN: from a client's request to a host's answer, one attempt after another.

A route is ASKING until the store has said that the client may use the service. It is TRYING while one host is asked,
WAITING while no host is live but one may come back, and OPEN once a host's service took the connection. The relay holds
early data here and sends it to a host only when that host has opened, so no request is delivered twice.
"""

from __future__ import annotations

import sys

from kdispatch_protocol.errors import CODES
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.timers import Timers
from kdispatch_protocol.tokens import token_digest
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.identity import stream_key
from kdispatch_protocol.wire.messages import Open, Opened, Reset, Trying, reset_frame
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.claims import Account, Claim
from kdispatch_relay.switch.counters import Counters
from kdispatch_relay.switch.intents import AskOpen, FirstStream, IntentQueue, StreamEnded, said_by_agent
from kdispatch_relay.switch.registry import ListedHost, Registry, Terms
from kdispatch_relay.switch.routes import Leg, Route, RouteInput, RouteState
from kdispatch_relay.switch.sessions import SwitchSession

__all__ = ["Opens"]

# Payloads of RESETs for OPENs that are refused unread.
_TOO_MANY = Reset(code="busy", text="This session has reached its limit of streams or of unanswered opens.").encode()
_NO_MEMORY = Reset(code="busy", text="The relay is short of memory.").encode()
_FAILED = Reset(code="rate_limited", text="Too many opens of this session, or of its address, failed.").encode()


class Opens:
    """Attempts and waits. Frames to send go to the sessions' outboxes, and each such session into ``touched``."""

    def __init__(
        self,
        registry: Registry,
        timers: Timers,
        limits: Limits,
        touched: set[SwitchSession],
        *,
        intents: IntentQueue,
        counters: Counters,
    ) -> None:
        self._counters = counters
        self.reports = False  # whether the gate wants to hear of each stream that ended
        self._intents = intents
        self.few = False  # set by the gate while it handles few frames: then an OPEN may be flushed on its own
        self._registry = registry
        self._timers = timers
        self._limits = limits
        self._touched = touched

    def refuses(self, session: AgentSession, number: int, now: float) -> bool:
        """Refuse a client's OPEN that is one too many, without reading it; returns whether it was refused.

        This costs a tenth of what reading it would cost, so an agent that sends many cannot keep the relay busy.
        """
        if session.unanswered >= self._limits.opens or session.streams_opened >= self._limits.streams_client:
            refusal = _TOO_MANY
        elif session.budget.spent:
            refusal = _NO_MEMORY
        elif not session.failures.peek(now):
            refusal = _FAILED
        else:
            return False
        session.outbox.send(frames.frame(frames.RESET, number, payload=refusal))
        return True

    def begin(self, session: AgentSession, number: int, message: Open, now: float) -> None:
        """Handle a client's OPEN that was not refused unread."""
        route = Route(session, number, message)
        route.began = now
        self._counters.opens += 1
        session.legs[number] = session.asking[message.uuid] = route.client
        session.unanswered += 1
        session.streams_opened += 1
        route.deadline = now + self._limits.open_total
        rests = None if message.token is None else token_digest(message.token)
        entry = self._registry.get(message.service)
        route.client.ground = self._registry.rest(route.client, Claim(message.service, "client", rests))
        if entry is not None and entry.terms is not None and entry.terms.public:
            self._admit(route, entry.terms, now)
        else:
            self._intents.put(AskOpen(route))

    def allowed(self, route: Route, terms: Terms, now: float) -> None:
        """The service exists and the client may open it."""
        if route.state is RouteState.ASKING and self.alive(route):
            self._registry.learn(route.message.service, terms)
            self._admit(route, terms, now)

    def _admit(self, route: Route, terms: Terms, now: float) -> None:
        assert route.client.ground is not None
        account = route.client.ground.entry.account
        if route.message.pin is not None and not terms.pins:
            self.refuse(route, "not_permitted", "The service does not let clients choose a host.")
        elif full := account.refusal(terms, route.opener.group):
            route.opener.effort.limited(full.kind)
            self.refuse(route, full.code, full.text)
        else:
            self.count(route, account, public=terms.public)
            self._next_try(route, now)

    @staticmethod
    def count(route: Route, account: Account, *, public: bool) -> None:
        """Count a stream among its owner's, until it is released."""
        route.account, route.public = account, public
        account.add(route.opener.group, public=public)

    def refused(self, route: Route, code: str, text: str, now: float) -> None:
        """The client may not open the service, or it does not exist: refuse the open.

        That counts as a failure, so that names cannot be guessed.
        """
        if route.state is RouteState.ASKING:
            route.opener.failures.take(now)
            route.opener.effort.look_up_failed()
            self.refuse(route, code, text)

    def refuse(self, route: Route, code: str, text: str = "") -> None:
        """Tell the client that its open failed, and forget the route. No effect on a route that is open or over."""
        if self.alive(route) and route.state is not RouteState.OPEN:
            why = text or (CODES[code].meaning if code in CODES else "")
            route.client.session.outbox.send(reset_frame(route.client.number, code, why))
            self.close(route, code)

    def alive(self, route: Route) -> bool:
        """Whether its client still waits."""
        return route.client.session.legs.get(route.client.number) is route.client

    def host_appeared(self, host: ListedHost, now: float) -> None:
        """A host was listed: opens that wait for any host, or for this one, go on."""
        entry = self._registry.get(host.service)
        waiting = entry.waiting if entry else ()
        for route in [route for route in waiting if route.message.pin in {None, host.id}]:
            self._next_try(route, now)

    def early(self, leg: Leg, value: int, payload: memoryview, now: float) -> str:
        """Handle a client's early data; returns an error code if it breaks the rules."""
        route = leg.route
        attempt, offset = frames.split_early(value)
        if route.state is RouteState.OPEN and attempt == route.attempt and leg.peer is not None:
            if offset != leg.next or offset + len(payload) > self._limits.early:
                return "protocol_error"
            leg.next += len(payload)
            leg.peer.forward(frames.DATA, 0, offset, bytes(payload), now)
            self._touched.add(leg.peer.session)
        elif route.state is not RouteState.TRYING or attempt != route.attempt:
            leg.session.effort.idle += 1  # it belongs to an attempt that is over
        elif not route.hold_early(attempt, offset, payload, self._limits):
            return "protocol_error"
        return ""

    def opened(self, leg: Leg, payload: memoryview, now: float) -> str:
        """Handle a host's OPENED: bind the stream, send the early data. Returns an error code if it breaks a rule."""
        route = leg.route
        opened = Opened.parse(payload)
        if route.state is not RouteState.TRYING or route.host is not leg:
            return "protocol_error"
        client = route.client
        if opened.limit < self._limits.early or opened.attempt != route.attempt:
            return "protocol_error"
        route.move(RouteInput.OPENED)
        self._counters.opened += 1
        route.set_timer(None)
        route.opener.unanswered -= 1
        client.peer, leg.peer = leg, client
        client.session.stream_opened(client)
        leg.session.stream_opened(leg)
        if route.opener.is_first_of(route.message.service):
            self._intents.put(FirstStream(route))
        client.limit = opened.limit
        client.session.outbox.send(frames.frame(frames.OPENED, client.number, payload=bytes(payload)))
        if route.early:
            leg.forward(frames.DATA, 0, 0, bytes(route.early), now)
        client.next = len(route.early)
        route.drop_early()
        # The details of the request are no longer needed, above all its secret and its token.
        route.message = Open(service=sys.intern(route.message.service), uuid=route.message.uuid, limit=0)
        route.tried = ()
        self._touched.update((client.session, leg.session))
        return ""

    def host_failed(self, route: Route, code: str, text: str, now: float) -> None:
        """The host that was asked refused, went away, or did not answer in time."""
        if route.host is not None:
            self._drop_leg(route.host)
            route.host = None
        self._uncount(route)
        route.drop_early()
        if code == "unknown_service":  # the OPEN crossed its WITHDRAW: the service exists, this host has left
            code = "no_live_host"
        route.refusal = (said_by_agent(code), text)
        self._next_try(route, now)

    def cancel(self, leg: Leg) -> None:
        """A client gave up before its answer: cancel the attempt at the host, if there is one."""
        host = leg.route.host
        if host is not None:
            host.session.outbox.send(reset_frame(host.number, "cancelled", "The client gave up."))
            self._touched.add(host.session)
        self.close(leg.route, "cancelled")

    def close(self, route: Route, code: str) -> None:
        """End a stream in any state. The caller has told those who have to hear of it and of its code."""
        self._report(route, code)
        self.forget(route)

    def forget(self, route: Route) -> None:
        """Forget a route without a report: the stream may go on over another route."""
        route.set_timer(None)
        if route.state is not RouteState.OPEN:
            route.opener.unanswered -= 1
        self._stop_waiting(route)
        self._uncount(route)
        self._count_bytes(route)
        self._drop_leg(route.client)
        route.opener.streams_opened -= 1
        if route.host is not None:
            self._drop_leg(route.host)
        route.drop_early()
        self._release(route)

    def finish(self, route: Route) -> None:
        """Both ends have confirmed that both directions ended: end the stream. The last ACKs stay in the outboxes."""
        self._report(route, "closed")
        self._count_bytes(route)
        route.opener.streams_opened -= 1
        self._uncount(route)
        for leg in (route.client, route.host):
            if leg is not None:
                leg.session.remove_leg(leg)
                leg.drop_data()
                self._registry.free(leg)
        self._release(route)

    def _report(self, route: Route, code: str) -> None:
        self._counters.stream_ended(code, opened=route.state is RouteState.OPEN)
        if not self.reports:
            return
        client, host = route.client, route.host
        ended = StreamEnded(
            service=route.message.service,
            host=route.host_entry.id if route.host_entry else "",
            client=route.opener.process,
            source=route.opener.source,
            sent=client.next,
            received=host.next if host else 0,
            began=route.began,
            code=code,
        )
        self._intents.put(ended)

    # --- inner ------------------------------------------------------------------------------

    def _count_bytes(self, route: Route) -> None:
        self._counters.sent += route.client.next - route.client.first
        if route.host is not None:
            self._counters.received += route.host.next - route.host.first

    def _next_try(self, route: Route, now: float) -> None:
        route.set_timer(None)
        self._stop_waiting(route)
        message = route.message
        host = None
        if route.attempt < self._limits.tries and now < route.deadline:
            host = self._registry.pick(message.service, route.tried, message.pin)
        if host is not None:
            self._ask(route, host, now)
        elif not route.tried and now < min(route.deadline, self._registry.wait_until(message.service)):
            self._wait(route)
        else:
            route.opener.failures.take(now)
            self.refuse(route, *route.refusal)

    def _ask(self, route: Route, host: ListedHost, now: float) -> None:
        message = route.message
        session = host.session
        route.attempt += 1
        route.tried += (host.id,)
        route.move(RouteInput.HOST_ASKED)
        route.host_entry = host
        host.streams += 1
        leg = route.host = Leg(session, session.take_number(), route, message.limit)
        leg.ground = host.ground.also(leg)
        session.legs[leg.number] = leg
        secret = message.secret
        forwarded = Open(
            service=message.service,
            uuid=message.uuid,
            limit=message.limit,
            key=stream_key(bytes.fromhex(secret), host.process).hex() if secret is not None else None,
            attempt=route.attempt,
            process=route.opener.process,
            kind=message.kind,
        )
        opening = frames.frame(frames.OPEN, leg.number, payload=forwarded.encode())
        session.outbox.send(opening)
        if self.few and session.flush is not None:
            session.flush()  # the client waits for the host now, which can begin while the relay does the rest
        trying = Trying(attempt=route.attempt, process=host.process, host=host.id)
        route.client.session.outbox.send(frames.frame(frames.TRYING, route.client.number, payload=trying.encode()))
        self._touched.update((session, route.client.session))
        until = now + self._limits.open_host
        route.set_timer(self._timers.add(until, lambda when: self._host_timed_out(route, leg, when)))

    def _host_timed_out(self, route: Route, leg: Leg, now: float) -> None:
        leg.session.stalled = True
        leg.session.outbox.send(reset_frame(leg.number, "host_timeout", "The host did not answer in time."))
        # A host that was only paused owes no answer to a stream that was reset. It answers this PING once it runs
        # again.
        leg.session.outbox.send(frames.frame(frames.PING))
        self._touched.add(leg.session)
        self.host_failed(route, "host_timeout", "The host did not answer in time.", now)

    def _wait(self, route: Route) -> None:
        service = route.message.service
        route.move(RouteInput.NO_HOST)
        entry = self._registry.get(service)
        assert entry is not None  # its client's leg rests there
        entry.waiting[route] = None
        until = min(route.deadline, self._registry.wait_until(service))
        route.set_timer(self._timers.add(until, lambda when: self._next_try(route, when)))

    def _stop_waiting(self, route: Route) -> None:
        if route.state is RouteState.WAITING:
            entry = self._registry.get(route.message.service)
            if entry is not None:
                entry.waiting.pop(route, None)

    def _release(self, route: Route) -> None:
        if route.account is not None:
            route.account.remove(route.opener.group, public=route.public)
            route.account = None

    def _uncount(self, route: Route) -> None:
        if route.host_entry is not None:
            self._registry.carried(route.host_entry)
            route.host_entry = None

    def _drop_leg(self, leg: Leg) -> None:
        leg.session.remove_leg(leg)
        leg.drop_queue()
        self._registry.free(leg)
        self._touched.add(leg.session)
