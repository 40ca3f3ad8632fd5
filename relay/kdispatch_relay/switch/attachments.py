"""ATTACH: rejoins the two ends of a stream after a session was lost.

Each agent names the streams that it has, and the peer of each. One end, as its agent describes it, is a *half*. A half
waits here for the other one, and ends with its session. When both halves are here, they become a route like that of an
OPEN, and the relay sends each agent the other's entry. If the agent of the other end is connected but has not attached
the stream, the relay asks it. That agent then attaches as well, or says what became of the stream.

The relay trusts no claim: it uses the process id that an agent has proved, and it joins two halves only if each names
the other's process. The ends check each other's proofs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from kdispatch_protocol.errors import CODES, RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.timers import Timer, Timers
from kdispatch_protocol.tokens import token_digest
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Open, Reset, reset_frame
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.claims import Claim, Ground
from kdispatch_relay.switch.counters import Counters
from kdispatch_relay.switch.intents import AskAttach, IntentQueue, RefusedAttach, said_by_agent
from kdispatch_relay.switch.opens import Opens
from kdispatch_relay.switch.registry import Registry
from kdispatch_relay.switch.routes import Leg, Route, RouteInput
from kdispatch_relay.switch.sessions import SwitchSession

__all__ = ["Attachments", "Half"]

_RESTARTED = ("peer_restarted", CODES["peer_restarted"].meaning)
_HOST_GONE = ("withdrawn", "The host may not offer the service any more.")
_OTHER = {"client": "host", "host": "client"}


@dataclass(slots=True, eq=False)
class Half:
    """One end of a stream, attached at its session under a new number."""

    session: AgentSession
    number: int
    entry: AttachEntry
    until: float  # after this the relay drops the half, and its agent has to attach again
    ground: Ground | None = None  # with everything that rests on the token shown with it

    @property
    def key(self) -> tuple[str, str, str]:
        """The key under which it waits. It contains the process, so no other agent's half can take its place."""
        return self.entry.uuid, self.entry.role, self.session.process

    @property
    def wanted(self) -> tuple[str, str, str]:
        """The key of the half that it waits for."""
        return self.entry.uuid, _OTHER[self.entry.role], self.entry.peer

    def fits(self, other: Half) -> bool:
        """Whether the two are the ends of one stream: each names the other, and both name the same service."""
        return self.wanted == other.key and self.key == other.wanted and self.entry.service == other.entry.service


class Attachments:
    """The halves at this relay. ``touched`` collects the sessions that have something to send."""

    def __init__(
        self,
        registry: Registry,
        limits: Limits,
        touched: set[SwitchSession],
        by_process: dict[str, AgentSession],
        *,
        cut: Callable[[SwitchSession, str, str], None],
        opens: Opens,
        lost: Callable[[Leg, float], None],
        timers: Timers,
        intents: IntentQueue,
        counters: Counters,
    ) -> None:
        self._intents = intents
        self._counters = counters
        self.restarted: dict[str, AgentSession] = {}  # processes that have ended, each with its successor's session
        self._registry = registry
        self._limits = limits
        self._touched = touched
        self._by_process = by_process
        self._cut = cut
        self._lost = lost  # called when a leg is lost
        self._opens = opens
        self._waiting: dict[tuple[str, str, str], Half] = {}
        self._by_peer: dict[str, dict[Half, None]] = {}  # the same halves, by the process that they wait for
        self._timers = timers
        self._all: dict[Half, None] = {}  # all halves of all sessions, in the order in which they expire
        self._due: Timer | None = None  # when the first of them expires

    def __len__(self) -> int:
        return len(self._waiting)

    # --- an agent sends ATTACH ---------------------------------------------------------------

    def begin(
        self, session: AgentSession, payload: memoryview, is_new: Callable[[AgentSession, int], bool], now: float
    ) -> tuple[int, int]:  # fmt: skip
        """Handle an agent's ATTACH. It asks the store once for each service, but not for one known to be public.

        Returns how many of its streams were taken, and how many were refused.
        """
        attach = Attach.parse(payload)
        rests = None if attach.token is None else token_digest(attach.token)
        groups: dict[tuple[str, str], list[Half]] = {}
        refused = 0
        for entry in attach.entries():
            if entry.number is None or not is_new(session, entry.number):
                raise RemoteProtocolError("An ATTACH with a wrong number.")
            for other in self._others_of_agent(session) if entry.opening else ():
                self._give_up_open(other, entry.uuid)
            half = Half(session, entry.number, entry, now + self._limits.attach_wait)
            if len(session.halves) + len(session.legs) >= self._limits.streams_client + self._limits.streams_host:
                refused += 1
                self._answer(half, "busy", "This session has reached its limit of streams.")
            elif not session.failures.peek(now):
                refused += 1
                self._answer(half, "rate_limited", "Too many requests of this session, or of its address, failed.")
            else:
                session.halves[half.number] = half
                self._all[half] = None
                if self._due is None:
                    self._due = self._timers.add(half.until, self._expire)
                half.ground = self._registry.rest(half, Claim(entry.service, entry.role, rests))
                groups.setdefault((entry.service, entry.role), []).append(half)
        for (service, role), halves in groups.items():
            self._look_up(AskAttach(session, service, role, attach.token, halves), now)
        return len(attach.streams) - refused, refused

    def begun_anew(self, session: AgentSession, uuid: str, now: float) -> None:
        """A client opens a stream, perhaps again: end its earlier attempts in other sessions, which sent nothing."""
        for other in self._others_of_agent(session):
            self._give_up_open(other, uuid)
            leg = other.streams.get((uuid, "client"))
            if leg is not None:
                self._lost(leg, now)

    def _give_up_open(self, other: AgentSession, uuid: str) -> None:
        """Cancel the open of this stream in another session.

        The client resumes with the one host that may have its early data, so no further host may get that data.
        """
        leg = other.asking.get(uuid)
        if leg is not None:
            self._opens.cancel(leg)

    def _others_of_agent(self, session: AgentSession) -> Collection[AgentSession]:
        newest = self._by_process[session.process]
        if newest.older is None and newest is session:
            return ()  # the usual case, and every open comes through here
        return [other for other in newest.all_of_agent if other is not session]

    def _look_up(self, asked: AskAttach, now: float) -> None:
        known = self._registry.get(asked.service)
        session = asked.session
        session.look_ups += 1
        if asked.role == "client" and known is not None and known.terms is not None and known.terms.public:
            self.allowed(asked, now)
        elif session.look_ups > self._limits.look_ups:
            self._cut(session, "rate_limited", "Too many look-ups of this session are pending.")
        else:
            self._intents.put(asked)

    def allowed(self, asked: AskAttach, now: float) -> None:
        """The agent may use the service: join the halves whose other end is here, and let the others wait."""
        asked.session.look_ups -= 1
        for half in asked.alive():
            joined = self._joined_later(half)
            if joined is not None:
                self._replaced(half, joined.session)
                continue
            older = self._waiting.get(half.key)
            if older is not None:
                kept = max(half, older, key=lambda one: one.entry.attach)  # sessions can overtake each other
                self._replaced(half if kept is older else older, kept.session)
                if kept is older:
                    continue
            other = self._waiting.get(half.wanted)
            if other is not None and other.fits(half):
                self._join(half, other, now)
            elif half.entry.peer in self.restarted:
                self._refuse(half, *_RESTARTED)
            else:
                self._wait(half, now)

    @staticmethod
    def _joined_later(half: Half) -> Leg | None:
        """The leg of the same end, if it was attached after this half and joined while this half was looked up."""
        end = half.entry.uuid, half.entry.role
        legs = (session.streams.get(end) for session in half.session.all_of_agent)
        return next((leg for leg in legs if leg is not None and leg.attach > half.entry.attach), None)

    def _replaced(self, half: Half, by: SwitchSession) -> None:
        self.drop(half)
        if half.session is not by:  # `by` may be lost first, and then this session has no half waiting
            half.session.outbox.send(frames.frame(frames.GONE, half.number))
            self._touched.add(half.session)

    def _wait(self, half: Half, now: float) -> None:
        self._waiting[half.key] = half
        self._by_peer.setdefault(half.entry.peer, {})[half] = None
        peer = self._by_process.get(half.entry.peer)
        if peer is None:
            return
        if half.session.asks.take(now):
            self._ask(peer, [half])
        else:
            self._cut(half.session, "rate_limited", "This agent's streams make the relay ask other agents too often.")

    def refused(self, asked: AskAttach, code: str, text: str, now: float) -> None:
        """The agent may not use the service: reset its streams of it.

        Each counts as a failure, so that names and tokens cannot be guessed.
        """
        asked.session.look_ups -= 1
        for half in asked.alive():
            asked.session.failures.take(now)
            asked.session.effort.look_up_failed()
            self._refuse(half, code, text)
            other = self._waiting.get(half.wanted)
            if asked.role == "host" and other is not None and other.fits(half):
                self._refuse(other, *_HOST_GONE)  # a host that gets this ends the stream and sends no answer
            else:
                self._ask_other(half)

    # --- sessions -----------------------------------------------------------------------------

    def greeted(self, session: AgentSession) -> None:
        """A process has greeted: ask it for the ends that wait for it, and refuse those that wait for a predecessor."""
        self.restarted.pop(session.process, None)
        for process in session.predecessors:
            self.restarted[process] = session
            ghost = self._by_process.get(process)
            if ghost is not None:  # its process has ended, but its connection has not closed yet
                self._cut(ghost, "superseded", "")
            for half in list(self._by_peer.get(process, ())):
                self._refuse(half, *_RESTARTED)
        self.newest(session)

    def newest(self, session: AgentSession) -> None:
        """This session is now the newest of its process: ask there for the ends that wait for the process."""
        self._ask(session, self._by_peer.get(session.process, ()))

    def session_lost(self, session: AgentSession) -> None:
        """Drop its halves."""
        for half in list(session.halves.values()):
            self.drop(half)
        for process in session.predecessors:
            if self.restarted.get(process) is session:
                del self.restarted[process]

    # --- refusals -----------------------------------------------------------------------------

    def refused_by_peer(self, session: AgentSession, reset: Reset) -> None:
        """An agent refuses the ATTACH of another process: refuse the half that waits for this agent."""
        for role in _OTHER:
            half = self._waiting.get((reset.uuid or "", role, reset.process or ""))
            if half is not None and half.entry.peer == session.process:
                self._refuse(half, said_by_agent(reset.code), reset.text)

    def given_up(self, half: Half) -> None:
        """An agent reset a stream that it had attached: let it answer the half that waits for it."""
        self.drop(half)
        self._ask_other(half)

    def revoked(self, half: Half, text: str) -> None:
        """The agent may not attach this half any more."""
        self._refuse(half, "revoked", text)
        self._ask_other(half)

    def drop(self, half: Half) -> None:
        """Forget a half. Its agent knows that, or is gone."""
        if half.session.halves.get(half.number) is half:
            del half.session.halves[half.number]
            del self._all[half]
            if self._due is not None and not self._all:
                self._due.cancel()
                self._due = None
            self._registry.free(half)
        if self._waiting.get(half.key) is half:
            del self._waiting[half.key]
            waiting = self._by_peer[half.entry.peer]
            del waiting[half]
            if not waiting:
                del self._by_peer[half.entry.peer]
            peer = self._by_process.get(half.entry.peer)
            for session in peer.all_of_agent if peer is not None else ():
                session.asked.discard(half)

    def _expire(self, now: float) -> None:
        """Drop halves whose wait is over. Their agents get GONE, and attach again if they still want the stream."""
        self._due = None
        while self._all:
            half = next(iter(self._all))
            if half.until > now:
                self._due = self._timers.add(half.until, self._expire)
                return
            self.drop(half)
            half.session.outbox.send(frames.frame(frames.GONE, half.number))
            self._touched.add(half.session)

    # --- inner --------------------------------------------------------------------------------

    def _refuse(self, half: Half, code: str, text: str) -> None:
        self.drop(half)
        self._answer(half, code, text)

    def _answer(self, half: Half, code: str, text: str) -> None:
        session, entry = half.session, half.entry
        session.outbox.send(reset_frame(half.number, code, text))
        self._touched.add(session)
        self._intents.put(RefusedAttach(entry.service, session.process, session.source, entry.peer, code))

    def _ask(self, session: AgentSession, halves: Iterable[Half]) -> None:
        """Ask an agent about the halves that wait for it."""
        for half in halves:
            session.asked.add(half)
        if session.asked:
            session.outbox.activate(session.asked)
            self._touched.add(session)

    def _ask_other(self, half: Half) -> None:
        """A half has ended and its agent knows: ask that agent, even if again, about the half that waits for it."""
        other = self._waiting.get(half.wanted)
        if other is not None and other.wanted == half.key:
            self._ask(half.session, [other])

    def _leave(self, half: Half, other: Half, now: float) -> None:
        """The stream goes on over the new legs: close the older ones. The ends resend what was under way there."""
        for session in half.session.all_of_agent:
            leg = session.streams.get((half.entry.uuid, half.entry.role))
            if leg is not None and leg.peer is not None and leg.peer.process == other.session.process:
                self._counters.moved += 1
                self._opens.forget(leg.route)
            elif leg is not None:
                self._lost(leg, now)  # its other end must not go on waiting

    def _tell(self, session: SwitchSession, entry: AttachEntry) -> None:
        """Send a join. It is a control frame, because it has to arrive before any data of the stream."""
        session.outbox.send(frames.frame(frames.ATTACH, payload=Attach.of([entry]).encode()))
        self._touched.add(session)

    def _join(self, one: Half, two: Half, now: float) -> None:
        client, host = (one, two) if one.entry.role == "client" else (two, one)
        message = Open(service=host.entry.service, uuid=host.entry.uuid, limit=host.entry.limit)
        route = Route(client.session, client.number, message)
        route.move(RouteInput.JOINED)
        route.began = now
        route.host = Leg(host.session, host.number, route, 0)
        for leg, half in ((route.client, client), (route.host, host)):
            assert half.ground is not None
            leg.ground = half.ground.also(leg)
        assert route.client.ground is not None
        self.drop(one)
        self.drop(two)
        self._counters.attached += 1
        self._leave(one, two, now)
        self._leave(two, one, now)
        entry = route.client.ground.entry  # a quota does not end a stream that goes on
        self._opens.count(route, entry.account, public=entry.terms is not None and entry.terms.public)
        route.client.peer, route.host.peer = route.host, route.client
        process = host.session.process
        route.host_entry = self._registry.known(host_id(process, message.service), message.service, process)
        route.host_entry.streams += 1
        client.session.streams_opened += 1
        for leg, own, other in ((route.client, client, host), (route.host, host, client)):
            leg.limit = other.entry.limit
            leg.first = leg.next = other.entry.received
            leg.resumed = True
            leg.attach = own.entry.attach
            leg.session.legs[leg.number] = leg
            leg.session.stream_opened(leg)
            self._tell(leg.session, replace(other.entry, peer=other.session.process, number=own.number))
