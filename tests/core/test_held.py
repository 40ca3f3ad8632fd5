"""What sessions make a relay keep: each kind is counted, bounded elsewhere, or gone by the end of the read."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import decode, frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Hello, Offer, Open, Opened
from kdispatch_relay.switch import switch as switch_module
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.budget import ProcessBudget
from kdispatch_relay.switch.eviction import make_room
from kdispatch_relay.switch.intents import AskAttach, AskOffer, CutSession
from kdispatch_relay.switch.registry import Terms
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.switch import Switch
from tests.core.intents import cuts_of, questions_of
from tests.core.verdict import held

ROOT: Final = Path(__file__).parents[2]
_FILES: Final = [
    *sorted((ROOT / "relay" / "kdispatch_relay" / "switch").glob("*.py")),
    *(
        ROOT / "relay" / "kdispatch_relay" / name
        for name in ("gate/access.py", "gate/gate.py", "door/arrivals.py", "limiter.py", "rates.py")
    ),
    *(
        ROOT / "shared" / "kdispatch_protocol" / name
        for name in (
            "wire/frames.py",
            "session/outbox.py",
            "session/timers.py",
            "wire/websocket.py",
            "session/aio/websocket_carrier.py",
            "session/aio/link.py",
            "session/aio/turns.py",
        )
    ),
]

#: In the process's budget: of these the largest go first when it is spent.
COUNTED: Final = {
    "FrameReader._held": "SwitchSession.note_partial",
    "Leg._queue": "SwitchSession.add_queued",
    "Outbox.control": "SwitchSession._hold_control",
    "Route.early": "SwitchSession.hold",
    "AgentSession.halves": "Held",
    "SwitchSession.legs": "Held",
    "AgentSession.offers": "Held",
}
#: Another view of what is counted, with what it takes in the cost of an entry.
SHARED: Final = {
    "Asks._halves": "halves",
    "AskAttach.halves": "halves",
    "Account.of_source": "legs",
    "Account.services": "legs, halves and offers: each may have a service and a handle of its own",
    "Claims._accounts": "legs, halves and offers",
    "Claims._services": "legs, halves and offers",
    "Doubts._of": "questions: of halves, legs and offers",
    "Ground.things": "legs, halves and offers",
    "OfferedHost.offers": "offers",
    "Link._received": "frames of one read, which are gone when it ends",
    "HostView.labels": "offers",
    "LiveOffer.labels": "offers",
    "ServiceHosts.grounds": "legs, halves and offers",
    "AccessControl._work": "questions: of halves, legs and offers",
    "Attachments._all": "halves",
    "Attachments._by_peer": "halves",
    "Attachments._waiting": "halves",
    "Leg._ack": "legs",
    "Outbox._soon": "legs",
    "Outbox.acks": "legs",
    "Outbox.ring": "legs",
    "Registry._hosts": "offers",
    "Route.tried": "legs: a try each, and there are three",
    "ServiceHosts.hosts": "offers",
    "ServiceHosts.waiting": "legs",
    "AgentSession.asking": "legs",
    "AgentSession.streams": "legs",
    "Timers._heap": "legs, and once as many that were cancelled",
}
#: Bounded by a number that has nothing to do with what a session asks.
BOUNDED: Final = {
    "AccessControl._rechecks": "services that exist and were changed",
    "Registry._lost": "services that exist, for as long as opens wait for a host to come back",
    "AccessControl._until": "services that exist",
    "Arrivals._all": "Limits.arrivals",
    "Arrivals._deadlines": "Limits.arrivals",
    "Arrivals._groups": "Limits.arrivals",
    "Arrivals._idle": "Limits.arrivals",
    "Arrivals._resting": "Limits.arrivals",
    "Arrivals.refused": "codes",
    "Attachments.restarted": "four of each session",
    "WebSocketCarrier._masks": "64",
    "Counters.cuts": "codes",
    "Counters.ended": "codes",
    "Counters.failed": "codes",
    "Drain._told_clients": "--limit-sessions",
    "Drain._told_hosts": "--limit-sessions",
    "Gate._acts": "types of intents",
    "Gate._links": "--limit-sessions",
    "Gate._reports": "types of intents",
    "Limiter._rates": "kinds",
    "Limiter._sessions_of": "--limit-sessions",
    "Limiter._told": "kinds",
    "Limiter.limited": "kinds",
    "Link._verdict": "one",
    "Rates._full": "MOST_KEYS",
    "Recent._keys": "its own bound",
    "Registry._withdrawn": "10,000",
    "Roster.newest": "--limit-sessions",
    "Roster.sessions": "--limit-sessions",
    "AgentSession.connects": "1,024 names",
    "AgentSession.predecessors": "four",
    "Switch._handlers": "types of frames",
    "Switch._handlers_of_agents": "types of frames",
    "Turns._waiting": "--limit-sessions",
    "WebSocketReader._control": "125 bytes",
    "WebSocketReader._head": "14 bytes",
    "WebSocketReader._mask": "4 bytes",
}
#: Empty again when a read was worked on.
TRANSIENT: Final = {
    "IntentQueue.waiting",
    "Claim.token",
    "Switch.touched",
    "WebSocketReader.pings",
}

_CONTAINERS: Final = frozenset({
    "Counter", "Held", "OrderedDict", "bytearray", "bytes", "deque", "dict", "frozenset", "list", "set", "tuple",
})  # fmt: skip


def _names(node: ast.AST | None) -> set[str]:
    return set() if node is None else {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def _is_container(annotation: ast.AST | None, value: ast.AST | None) -> bool:
    literal = isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp)
    empty = isinstance(value, ast.Constant) and isinstance(value.value, bytes)
    called = isinstance(value, ast.Call) and bool(_names(value.func) & _CONTAINERS)
    return literal or empty or called or bool(_names(annotation) & _CONTAINERS)


def _containers(path: Path) -> set[str]:
    """Each attribute of a class that can hold things."""
    found = set()
    for cls in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)):
        for node in ast.walk(cls):
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                name = target.attr
            elif isinstance(target, ast.Name) and node in cls.body and target.id != "__slots__":
                name = target.id
            else:
                continue
            if _is_container(node.annotation if isinstance(node, ast.AnnAssign) else None, node.value):
                found.add(f"{cls.name}.{name}")
    return found


def test_every_kind_is_known() -> None:
    """Each container in the relay's switch is counted, bounded or transient, and a new one has to be listed here."""
    found = set().union(*map(_containers, _FILES))
    known = [*COUNTED, *SHARED, *BOUNDED, *TRANSIENT]
    assert len(known) == len(set(known))
    assert found - set(known) == set(), "nobody has said what bounds these"
    assert set(known) - found == set(), "these are no more"


# --- what is counted, kind by kind --------------------------------------------------------------------

_SERVICE: Final = "ann/web"


class Relay:
    """A switch with little memory, whose store allows everything."""

    def __init__(self, memory: int = 1 << 20, limits: Limits | None = None) -> None:
        self.now = 100.0
        self.switch = Switch("00" * 16, lambda _: 0, 0.0, limits=limits or Limits(), memory=memory)
        self.cuts: list[tuple[SwitchSession, str]] = []

    def agent(self, number: int, source: str = "192.0.2.1", group: str = "") -> AgentSession:
        session = self.switch.connect(source, self.now, group=group)
        self.hear(session, frame(frames.HELLO, payload=Hello(versions=[1], secret=number.to_bytes(32).hex()).encode()))
        self.sent(session)
        return session

    def hear(self, session: AgentSession, *message: bytes) -> None:
        switch = self.switch
        switch.receive_frames(session, decode(b"".join(message)), self.now)
        for question in questions_of(switch):
            if isinstance(question, AskOffer):
                switch.offers.allowed(question, Terms(public=True), self.now)
            elif isinstance(question, AskAttach):
                switch.attachments.allowed(question, self.now)
            else:
                switch.opens.allowed(question.route, Terms(public=True), self.now)
        switch.take_touched()
        for cut in cuts_of(switch):
            self.cuts.append((cut.session, cut.code))
            switch.disconnect(cut.session, self.now)

    def sent(self, session: AgentSession) -> list[int]:
        """Send what waits for an agent; returns the types."""
        said = b""
        while parts := session.outbox.collect(1 << 16, self.now):
            said += b"".join(parts)
        return [type_ for type_, *_ in decode(said)] if said else []

    def host(self, number: int, **labels: str) -> AgentSession:
        session = self.agent(number)
        offer = Offer(
            service=_SERVICE, host=host_id(session.process, _SERVICE), digest="00" * 32, token="t", labels=labels
        )
        self.hear(session, frame(frames.OFFER, 1, payload=offer.encode()))
        return session


def _attach(numbers: range) -> bytes:
    entries = [
        AttachEntry(
            uuid=f"{number:032x}", service=_SERVICE, role="client", peer="77" * 16, number=number, received=0,
            limit=65536, attach=1, proof="00" * 32,
        )
        for number in numbers
    ]  # fmt: skip
    return frame(frames.ATTACH, payload=Attach.of(entries).encode())


def _open(number: int) -> bytes:
    return frame(frames.OPEN, number, payload=Open(service=_SERVICE, uuid=f"{number:032x}", limit=65536).encode())


def test_each_kind_counts_and_is_given_back() -> None:
    """Offers, opens, early data, answers, halves, partial frames and full sockets count, and all is given back."""
    relay = Relay()
    host, client = relay.host(1, zone="north"), relay.agent(2)
    assert host.held == held(host) > 1000
    seen = [client.held]
    early = frame(frames.EARLY, 1, frames.early_value(1, 0), bytes(5000))
    for message in (_open(1), early, frame(frames.PING) * 50, _attach(range(3, 43, 2))):
        relay.hear(client, message)
        assert client.held == held(client)
        seen.append(client.held)
    client.note_partial(10_000)
    client.note_unsent(50_000)
    seen.append(client.held)
    assert all(after > before for before, after in itertools.pairwise(seen))
    assert seen[-1] > 80_000
    client.note_partial(0)
    client.note_unsent(0)
    relay.sent(client)
    relay.hear(host, frame(frames.OPENED, 2, payload=Opened(limit=65536, attempt=1).encode()))
    assert relay.switch.budget.held == held(client) + held(host)
    for session in (client, host):
        relay.switch.disconnect(session, relay.now)
        session.note_unsent(1000)  # its connection is closed later, and no code counts this any more
    assert (relay.switch.budget.held, relay.switch.budget.queued) == (0, 0)


def test_the_largest_of_the_largest_source_goes() -> None:
    """When memory is short, the largest session of the largest source is cut, and others are not affected."""
    relay = Relay(memory=4 << 20)
    relay.host(1)
    honest = [relay.agent(10 + number, f"198.51.100.{number}") for number in range(5)]
    for session in honest:
        relay.hear(session, _attach(range(1, 65, 2)))
    greedy = [relay.agent(100 + number) for number in range(4)]
    number = 1
    while len(relay.cuts) < 2 and number < 20_000:
        for index, session in enumerate(greedy):
            if not session.ended:
                relay.hear(session, _attach(range(number, number + 64 - 16 * index, 2)))
        number += 64
    assert [code for _, code in relay.cuts] == ["busy", "busy"]
    assert [session for session, _ in relay.cuts] == greedy[:2]
    assert not any(session.ended for session in honest)
    assert relay.switch.budget.held <= relay.switch.budget.total


def test_many_small_sessions_of_one_source() -> None:
    """A source that holds most in many small sessions loses those before a larger session of an honest source."""
    relay = Relay(memory=2 << 20)
    relay.host(1)
    honest = relay.agent(9, "198.51.100.1")
    for start in range(1, 400, 64):
        relay.hear(honest, _attach(range(start, start + 64, 2)))
    for number in range(100, 300):
        relay.hear(relay.agent(number), _attach(range(1, 33, 2)))
    assert relay.cuts and {session.source for session, _ in relay.cuts} == {"192.0.2.1"}
    assert not honest.ended


def test_many_addresses_of_one_source() -> None:
    """The addresses of a network that counts as one source are one source here as well."""
    relay = Relay(memory=2 << 20)
    relay.host(1)
    honest = relay.agent(9, "198.51.100.1", "198.51.100.1")
    for start in range(1, 400, 64):
        relay.hear(honest, _attach(range(start, start + 64, 2)))
    for number in range(100, 300):
        relay.hear(relay.agent(number, f"2001:db8::{number}", "2001:db8::/64"), _attach(range(1, 33, 2)))
    assert relay.cuts and {session.group for session, _ in relay.cuts} == {"2001:db8::/64"}
    assert not honest.ended


def test_room_is_made_once_for_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory runs out within a read, the sessions are examined once, not for each frame."""
    relay = Relay(memory=1 << 20)
    host, client = relay.host(1), relay.agent(2)
    relay.hear(client, _open(1))
    relay.hear(host, frame(frames.OPENED, 2, payload=Opened(limit=2 << 20, attempt=1).encode()))
    looked: list[ProcessBudget] = []

    def look(sessions: Iterable[AgentSession], budget: ProcessBudget) -> list[CutSession]:
        looked.append(budget)
        return make_room(sessions, budget)

    monkeypatch.setattr(switch_module, "make_room", look)
    message = b"".join(frame(frames.DATA, 1, at * 8192, bytes(8192)) for at in range(150))
    relay.switch.receive_frames(client, decode(message), relay.now)
    assert [cut.code for cut in cuts_of(relay.switch)] == ["slow_consumer"]
    assert len(looked) == 1


@pytest.mark.parametrize("kind", ["halves", "answers", "early data", "parts of frames", "unsent"])
def test_the_budget_holds_whatever_fills_it(kind: str) -> None:
    """Sessions that fill the budget with one kind are cut, and what they held is free again."""
    relay = Relay(memory=1 << 20, limits=Limits(idle_burst=1e9, control=1 << 30))
    relay.host(1)
    for number in range(2, 60):
        session = relay.agent(number)
        for at in range(1, 512, 64):
            if session.ended:
                break
            if kind == "halves":
                relay.hear(session, _attach(range(at, at + 64, 2)))
            elif kind == "answers":
                relay.hear(session, frame(frames.PING) * 400)
            elif kind == "early data":
                early = frame(frames.EARLY, at, frames.early_value(1, 0), bytes(16_000))
                relay.hear(session, _open(at), early)
            elif kind == "parts of frames":
                session.note_partial(at * 60)
                relay.hear(session, frame(frames.PING))
            else:
                session.note_unsent(at * 400)
                relay.hear(session, frame(frames.PING))
        assert relay.switch.budget.held <= relay.switch.budget.total
    assert relay.cuts and {code for _, code in relay.cuts} == {"busy"}


def test_a_half_has_a_deadline() -> None:
    """A half whose other end does not come is ended by GONE, and the agent has to attach again."""
    relay = Relay()
    relay.host(1)
    client = relay.agent(2)
    relay.hear(client, _attach(range(1, 41, 2)))
    relay.now += 60
    relay.hear(client, _attach(range(41, 61, 2)))
    relay.sent(client)
    deadline = relay.switch.next_deadline()
    assert deadline == 100.0 + Limits().attach_wait
    relay.now = deadline
    relay.switch.handle_timeout(relay.now)
    assert relay.sent(client) == [frames.GONE] * 20
    assert len(client.halves) == 10
    relay.hear(client, _attach(range(101, 141, 2)))  # an honest agent repeats it
    assert len(client.halves) == 30
    relay.now += 60
    relay.switch.handle_timeout(relay.now)
    assert len(client.halves) == 20
    relay.switch.disconnect(client, relay.now)
    assert relay.switch.next_deadline() is None
    assert Limits().attach_wait > Limits().grace  # an agent that waits no longer than a grace never sees this


def test_names_of_services_are_forgotten() -> None:
    """The relay remembers at most 1,024 services for an agent that opens streams of ever more services."""
    session = Relay().agent(1)
    for number in range(3000):
        assert session.is_first_of(f"ann/s{number}")
        assert not session.is_first_of(f"ann/s{number}")
    assert session.connects is not None and len(session.connects) <= 1024
