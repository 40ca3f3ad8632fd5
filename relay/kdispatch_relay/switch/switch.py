"""The switch: frames in from any session, frames out to others. Sans-I/O.

The gate calls :meth:`Switch.receive_frames` with what a session's carrier received, then :meth:`Switch.take_touched`.
It empties ``Switch.intents``: it answers the questions and cuts the sessions. Then it sends what the outboxes of the
touched sessions hold. Times are seconds of one clock that never goes back.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from kdispatch_protocol.errors import CODES, RemoteProtocolError
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.session.timers import Timers
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Frame
from kdispatch_protocol.wire.identity import VERSIONS, host_id, process_id
from kdispatch_protocol.wire.messages import QUIET, Hello, Offer, Open, Reset, Welcome, printable, reset_frame
from kdispatch_relay.switch.agents import AgentSession, Shared
from kdispatch_relay.switch.attachments import Attachments
from kdispatch_relay.switch.budget import ProcessBudget
from kdispatch_relay.switch.claims import Doubts
from kdispatch_relay.switch.counters import Counters
from kdispatch_relay.switch.eviction import make_room
from kdispatch_relay.switch.intents import (
    CutSession,
    IntentQueue,
    said_by_agent,
)
from kdispatch_relay.switch.offers import Offers
from kdispatch_relay.switch.opens import Opens
from kdispatch_relay.switch.passing import Passing
from kdispatch_relay.switch.registry import Registry
from kdispatch_relay.switch.roster import Roster
from kdispatch_relay.switch.routes import RouteState
from kdispatch_relay.switch.sessions import SwitchSession

__all__ = ["Switch"]


# More than 25 methods: a short one for each type of frame.
class Switch:
    """One relay's sessions, offers and routes. ``choose(n)`` gives a uniform number below ``n``.

    After each input and each command, the caller takes :meth:`take_touched` and the intents until both are empty, sends
    what the outboxes hold, and sets its timer to :meth:`next_deadline`. ``Passing.data_fast`` leaves nothing to do.
    """

    def __init__(
        self,
        relay_id: str,
        choose: Callable[[int], int],
        now: float,
        *,
        limits: Limits = DEFAULT_LIMITS,
        memory: int = 1 << 30,
        program: str = "",
    ) -> None:
        self.relay_id = relay_id
        self.program = program
        self.limits = limits
        self.budget = ProcessBudget(memory)
        self.registry = Registry(choose, limits, now)
        self.timers = Timers()
        self._roster = Roster()
        self.by_process = self._roster.newest
        self.sessions = self._roster.sessions
        self.touched: set[SwitchSession] = set()  #: read it to see whether there is one
        #: Empty it after each call: questions and cuts first, then what the outboxes hold, then reports.
        self.intents = IntentQueue()
        self.counters = Counters()
        self.doubts = Doubts()
        self.opens = Opens(
            self.registry, self.timers, limits, self.touched, intents=self.intents, counters=self.counters
        )
        self.offers = Offers(self.registry, limits, self.touched, self.opens.host_appeared, self.intents)
        self.passing = Passing(self.opens, self.touched, self._forwarded, self.budget)
        self.attachments = Attachments(
            self.registry, limits, self.touched, self.by_process, cut=self.cut, opens=self.opens,
            lost=self.passing.leg_lost, timers=self.timers, intents=self.intents, counters=self.counters,
        )  # fmt: skip
        self._handlers: dict[int, Callable[[SwitchSession, int, int, memoryview, float], None]] = {
            frames.PING: self._ping,
            frames.PONG: self._pong,
            frames.RESET: self._reset,
            frames.GONE: self._gone,
        }
        self._handlers_of_agents: dict[int, Callable[[AgentSession, int, int, memoryview, float], None]] = {
            frames.OFFER: self._offer,
            frames.WITHDRAW: self._withdraw,
            frames.OPEN: self._open,
            frames.ATTACH: self._attach,
        }

    # --- sessions ----------------------------------------------------------------------------

    def connect(self, source: str, now: float, shared: Shared | None = None, *, group: str = "") -> AgentSession:
        """A carrier is up; the agent's HELLO comes next. All sessions of its ``group`` use the same ``shared``."""
        return AgentSession(self.limits, self.budget, source, now, shared, group=group)

    def disconnect(self, session: SwitchSession, now: float) -> None:
        """The carrier is gone, or is about to be closed. A second call changes nothing."""
        if session.ended:
            return
        session.ended = True
        if isinstance(session, AgentSession):
            self._agent_left(session, now)
        for leg in list(session.legs.values()):
            if session.legs.get(leg.number) is leg:  # both ends may be in this session
                self.passing.leg_lost(leg, now)
        self.touched.discard(session)
        session.let_go()

    def _agent_left(self, session: AgentSession, now: float) -> None:
        older = self._roster.leave(session)
        self.offers.session_lost(session, now)
        self.attachments.session_lost(session)
        if older is not None:
            self.attachments.newest(older)

    def receive_frames(self, session: SwitchSession, received: list[Frame], now: float) -> None:
        """Handle frames that a session received. On ``RemoteProtocolError``, cut the session with its code.

        What the frames before it caused stays in effect.
        """
        if session.stalled:
            self._heard_again(session, now)
        leg_of, pass_data, pass_frame = session.legs.get, self.passing.data, self.passing.frame
        effort, budget, outbox = session.effort, self.budget, session.outbox
        if effort.why:
            return
        for type_, flags, number, value, payload in received:
            if session.ended:
                return
            leg = leg_of(number)
            if type_ == frames.DATA and leg is not None:
                pass_data(leg, flags, value, payload, now)
            elif type_ in _OF_STREAMS and leg is not None:
                pass_frame(leg, type_, flags, value, payload, now)
            else:
                self._control_frame(session, type_, number, value, payload, now)
                if session.effort.why:  # this frame exceeded a limit
                    return
        # An open makes eight of these calls. Properties here, and settling parts of an OPEN at once, cost an open 3 %.
        if outbox.control or outbox.acks or outbox.ring:
            self.touched.add(session)
        if effort.idle or effort.asks >= 1:
            self.settle_effort(session, now)
        if budget.queued + budget.held > budget.total:
            self.make_room()

    def _control_frame(  # noqa: PLR0917 - one frame's fields
        self, session: SwitchSession, type_: int, number: int, value: int, payload: memoryview, now: float
    ) -> None:
        """Handle a frame that does not belong to a running stream. Each such frame counts."""
        effort = session.effort
        if type_ == frames.DATA:
            effort.idle += 1
            if session.may_answer_gone(number, now):
                session.outbox.send(frames.frame(frames.GONE, number))
        elif isinstance(session, AgentSession) and not session.process:
            self._hello(session, type_, payload)
        elif type_ in _OF_STREAMS:
            effort.idle += 1
        elif type_ in self._handlers:
            self._handlers[type_](session, number, value, payload, now)
        elif isinstance(session, AgentSession) and type_ in self._handlers_of_agents:
            self._handlers_of_agents[type_](session, number, value, payload, now)
        else:
            raise RemoteProtocolError(f"A {frames.TYPE_NAMES[type_]} frame is not expected here.")
        if effort.idle >= _SETTLED or effort.asks:
            self.settle_effort(session, now)

    def settle_effort(self, session: SwitchSession, now: float) -> None:
        """Cut a session that made the relay do too much for nothing."""
        if not session.effort.settle(now):
            self.cut(session, "rate_limited", session.effort.why)

    def take_touched(self) -> list[SwitchSession]:
        """Sessions whose outboxes may have something to send, hosts first, because clients wait for them.

        Take the intents afterwards: this adds cuts.
        """
        touched = self.touched
        if len(touched) == 1:
            taken = [touched.pop()]
        else:
            taken = sorted(touched, key=_SENDS_LAST)
            touched.clear()
        for session in taken:
            if session.outbox.control_size > self.limits.control:
                self.cut(session, "slow_consumer", "Too many answers are pending for this agent.")
        return taken

    def touch(self, session: SwitchSession) -> None:
        """Note that frames were put into a session's outbox from outside."""
        self.touched.add(session)

    def cut(self, session: SwitchSession, code: str, text: str = "") -> None:
        """End a session for a reason that its agent should hear. The intent ``CutSession`` follows."""
        if not session.doomed:
            session.doomed = True
            self.intents.put(CutSession(session, code, text))

    def next_deadline(self) -> float | None:
        """The time at which :meth:`handle_timeout` must be called at the latest."""
        return self.timers.next_deadline()

    def handle_timeout(self, now: float) -> None:
        """Run the timers that are due, and go on as after each input."""
        for call in self.timers.due(now):
            call(now)

    # --- frames of the session -----------------------------------------------------------------------

    def _hello(self, session: AgentSession, type_: int, payload: memoryview) -> None:
        if type_ != frames.HELLO:
            raise RemoteProtocolError("The first frame is not HELLO.")
        hello = Hello.parse(payload)
        common = set(hello.versions) & set(VERSIONS)
        if not common:
            raise RemoteProtocolError(CODES["version_unsupported"].meaning, "version_unsupported")
        session.quiet = QUIET in hello.capabilities
        session.process = process_id(bytes.fromhex(hello.secret))
        before = (process_id(bytes.fromhex(old)) for old in hello.predecessors)
        session.predecessors = tuple(process for process in before if process != session.process)
        for replaced in self._roster.enter(session, moves=hello.mode == "move"):
            self.cut(replaced, "superseded")  # the secret proves that it is the same process
        if session.older is not None:
            session.connects = session.older.connects
        session.credit = self.limits.credit // 4 if self.budget.tight else self.limits.credit
        welcome = Welcome(
            version=max(common),
            relay=self.relay_id,
            credit=session.credit,
            spread_ms=max(500, 2 * len(self.by_process)),
            opens=self.limits.opens,
            streams=self.limits.streams_client,
            capabilities=[QUIET],
            program=self.program,
        )
        session.outbox.send(frames.frame(frames.WELCOME, payload=welcome.encode()))
        self.counters.sessions += 1
        self.attachments.greeted(session)

    def _offer(self, session: AgentSession, number: int, value: int, payload: memoryview, now: float) -> None:
        offer = Offer.parse(payload)
        if not self._new_number(session, number) or offer.host != host_id(session.process, offer.service):
            raise RemoteProtocolError("An OFFER with a wrong number or host id.")
        session.effort.asks += _OFFER
        self.offers.begin(session, number, offer, now)

    def _withdraw(self, session: AgentSession, number: int, value: int, payload: memoryview, now: float) -> None:
        if not self.offers.withdraw(session, number):
            session.effort.idle += 1

    def _open(self, session: AgentSession, number: int, value: int, payload: memoryview, now: float) -> None:
        if not self._new_number(session, number):
            raise RemoteProtocolError("An OPEN with a wrong number.")
        session.effort.asks += 1
        if self.opens.refuses(session, number, now):
            session.effort.refused += 1
            return
        message = Open.parse(payload)
        if message.unknown_kind is not None:
            session.effort.refused += 1
            text = f"This relay carries no flows of kind {printable(message.unknown_kind)!r}."
            session.outbox.send(reset_frame(number, "bad_request", text))
            return
        self.attachments.begun_anew(session, message.uuid, now)
        self.opens.begin(session, number, message, now)

    def _attach(self, session: AgentSession, number: int, value: int, payload: memoryview, now: float) -> None:
        taken, refused = self.attachments.begin(session, payload, self._new_number, now)
        session.effort.asks += (taken + refused) * _ENTRY
        session.effort.refused += refused * _ENTRY

    def _new_number(self, session: AgentSession, number: int) -> bool:
        """Whether a number is valid: odd, higher than all before it in the session, and the session not quiet."""
        fresh = number % 2 == 1 and number > session.highest_number and not session.quiet
        session.highest_number = max(session.highest_number, number)
        return fresh

    def _ping(self, session: SwitchSession, number: int, value: int, payload: memoryview, now: float) -> None:
        session.effort.idle += 1
        session.outbox.send(frames.frame(frames.PONG, value=value))

    def _pong(self, session: SwitchSession, number: int, value: int, payload: memoryview, now: float) -> None:
        """A PONG says nothing beyond its arrival."""
        session.effort.idle += 1

    def _gone(self, session: SwitchSession, number: int, value: int, payload: memoryview, now: float) -> None:
        """A session's other end distrusts this number and will attach the stream again: tell the peer to do so too."""
        leg, half = session.legs.get(number), session.half(number)
        if leg is not None and leg.route.state is RouteState.OPEN:
            self.passing.leg_lost(leg, now)
        elif half is not None:
            self.attachments.drop(half)
        else:
            session.effort.idle += 1

    def _reset(self, session: SwitchSession, number: int, value: int, payload: memoryview, now: float) -> None:
        reset = Reset.parse(payload)
        if number == 0:
            session.effort.asks += _ENTRY
            if isinstance(session, AgentSession):
                self.attachments.refused_by_peer(session, reset)
        leg, half = session.legs.get(number), session.half(number)
        if half is not None:
            self.attachments.given_up(half)
        if leg is None:
            session.effort.idle += _RESET if half is None and number else 0
            return
        route = leg.route
        if route.state is RouteState.OPEN:
            self.passing.reset_peer(leg, said_by_agent(reset.code), reset.text)
        elif leg is route.host:
            self.opens.host_failed(route, reset.code, reset.text, now)
        else:
            if not route.opener.resets.take(now):
                self.cut(route.opener, "rate_limited", "This agent gave up too many streams before they were answered.")
            self.opens.cancel(leg)

    # --- consequences ------------------------------------------------------------------------------------

    def _forwarded(self, session: SwitchSession) -> None:
        self.touched.add(session)
        if session.overdrawn:
            self.cut(session, "credit_exceeded", "More bytes are pending for this agent than its credit allows.")
        elif self.budget.spent:
            self.make_room()

    def make_room(self) -> None:
        """The process's budget is spent: cut the sessions that hold most. An intent follows for each."""
        if self.intents.has(CutSession):  # earlier cuts are pending, and free their memory after this read
            return
        for cut in make_room(self.sessions, self.budget):
            self.cut(cut.session, cut.code, cut.text)

    def _heard_again(self, session: SwitchSession, now: float) -> None:
        """A host that let an OPEN time out has been heard: it may be asked again, and opens that wait for one go on."""
        session.stalled = False
        for host in session.hosts:
            self.opens.host_appeared(host, now)


# Idle frames of one read are settled in batches of this many.
_SETTLED = 256
# Costs in units of an OPEN, measured: an OFFER, which takes a look-up and a row of the audit; a stream of an ATTACH.
_OFFER = 4.0
_ENTRY = 0.5
# A RESET without a stream has JSON to parse: it costs as much as this many PINGs.
_RESET = 4
_SENDS_LAST = operator.attrgetter("sends_last")
_OF_STREAMS = frozenset({frames.OPENED, frames.EARLY, frames.FIN, frames.ACK})
