"""Agents, a relay and hostile wires between them, without a loop, a socket or a clock.

The ends are the real classes: endpoints, the switch, the WebSocket reader. Only the transport between them is
simulated: every byte goes over a wire that delivers in pieces of any size, at any time. Programs write, read, stop and
give up at random; time jumps. A connection is lost at one end before the other notices, is replaced while the relay
still keeps it, or swallows all that it is given. Agents move from one to another. Relays and agents are killed and
started again, and a new relay replaces one that still runs. Whatever happened, the checks at the end (``verdict.py``)
must hold.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer, Frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer
from kdispatch_relay.switch.intents import AskAttach, AskOffer, Question
from kdispatch_relay.switch.registry import Terms
from kdispatch_relay.switch.switch import Switch
from tests.core.connection import Connection
from tests.core.intents import cuts_of, questions_of
from tests.core.ledger import check_books
from tests.core.wire import is_alone

#: Everything small, so that every bound is met in a few steps.
SMALL = Limits(
    window=512,
    window_max=4096,
    window_tight=384,
    window_floor=256,
    early=256,
    credit=8192,
    data=200,
    unsent=512,
    replay=6000,
    ack_bytes=1024,
    dropped=150,
    mark_wait=0.0005,
    mark_time=0.0,
    mark_round=0.02,
    quantum=150,
    batch_min=160,
    batch_max=1500,
    opens=4,
    streams_client=64,
    open_wait_start=1.0,
    open_wait_lost=1.0,
    attach_batch=3,
    grace=300.0,
    tombstone_extra=10_000.0,  # connections are idle here for longer than any real ones
)
SERVICE = "ann/web"
#: Codes by which one end says that the other broke the rules. An honest world never hears them.
BLAME = frozenset({"credit_exceeded", "offset_mismatch", "protocol_error", "bad_request", "unknown_service"})
#: The text of a reset that stands behind all that a program wrote.
PARTING = "ended behind its last words"
_PATTERN = bytes(i * 7 % 251 for i in range(251)) * 40


def content(key: int, offset: int, size: int) -> bytes:
    """The bytes of a direction: any lost, repeated or swapped piece shows."""
    start = (offset + key) % 251
    return _PATTERN[start : start + size]


@dataclass
class End:
    """A program at one end of a stream."""

    stream: Stream
    key: int  # of what it writes
    peer_key: int  # of what it reads
    written: int = 0
    read: int = 0
    unread: int = 0  # arrived, not consumed
    eof_written: bool = False
    eof_read: bool = False
    may_write: bool = True
    opened: bool = False  # a client's: it knows that a host has opened it
    reset: str | None = None
    finished: bool = False
    killed: bool = False  # its process was killed
    parting: bool = False  # it has ended: what it wrote must arrive, and then a reset
    most_credited: int = 1 << 62  # limit on its peer's credited bytes, including those dropped after its end
    last_word: str | None = None  # the text of its reset

    @property
    def over(self) -> bool:
        return self.finished or self.killed or self.reset is not None


@dataclass
class Agent:
    """One agent process. The relay may still keep connections that the agent has given up."""

    name: str
    endpoint: Endpoint
    serves: bool
    ends: dict[Stream, End] = field(default_factory=dict)
    dialing: list[Stream] = field(default_factory=list)
    connection: Connection | None = None  # the newest
    older: list[Connection] = field(default_factory=list)  # those that it is moving from
    ghosts: list[Connection] = field(default_factory=list)

    @property
    def connections(self) -> list[Connection]:
        return [*self.ghosts, *self.older, *([self.connection] if self.connection else [])]


#: A weight, and what then happens.
Action = tuple[int, Callable[[], None]]


class World:
    """A relay with its agents; ``rng`` makes all random decisions."""

    def __init__(self, rng: random.Random, *, clients: int = 1, hosts: int = 2, limits: Limits = SMALL) -> None:
        self.rng = rng
        self.now = 100.0
        self.limits = limits
        self.switch = self._new_relay()  # the one that accepts new connections
        self.relays = [self.switch]  # all that run
        self.agents: list[Agent] = []
        self.questions: deque[tuple[Switch, Question]] = deque()
        self.uuids = 0
        self.processes = 0
        self.delivered_to: dict[str, set[str]] = {}  # stream uuid -> processes that got a byte of it
        self.made: list[tuple[str, End]] = []
        self.restarts = 0  # of agents
        self.chance = random.Random(clients << 8 | hosts)  # decides only about fast paths
        self.fast = Counter[str]()  # how often each was taken
        for number in range(clients + hosts):
            serves = number >= clients
            agent = Agent(f"agent{number}", self._new_endpoint(serves=serves), serves)
            self.agents.append(agent)
            self.connect(agent)

    def _new_relay(self) -> Switch:
        return Switch("00" * 16, self.rng.randrange, self.now, limits=self.limits)

    def _new_endpoint(self, *, serves: bool, predecessor: bytes | None = None) -> Endpoint:
        self.processes += 1
        before = [predecessor] if predecessor else []
        endpoint = Endpoint(self.processes.to_bytes(32), limits=self.limits, predecessors=before)
        if serves:
            endpoint.offer(
                Offer(service=SERVICE, host=host_id(endpoint.process, SERVICE), digest="00" * 32, token="t")
            )  # fmt: skip
        return endpoint

    # --- sessions ------------------------------------------------------------------------

    def connect(self, agent: Agent) -> None:
        """An agent without a connection gets one."""
        if agent.connection is None:
            session = self.switch.connect(agent.name, self.now, group=agent.name)
            agent.connection = Connection(self.switch, session, agent.endpoint.connect(), self.chance)
            agent.endpoint.table.sink = lambda stream, data: self._data_arrived(agent, stream, data)

    def move(self, agent: Agent) -> None:
        """An agent whose connection works gets another one beside it, unless one is already on its way."""
        if agent.connection is not None and agent.connection.of_agent.ready and not agent.older:
            agent.older.append(agent.connection)
            agent.connection.left_at = self.now
            agent.connection = None
            self.connect(agent)

    def move_on(self, agent: Agent) -> bool:
        """Move agents to the relay that accepts new connections; returns whether there was anything to do."""
        before = agent.connections
        if agent.connection is not None and agent.connection.relay is not self.switch:
            self.move(agent)
        self.depart(agent)
        return agent.connections != before

    def depart(self, agent: Agent) -> None:
        """An agent that has moved announces it on the older connection, and closes it once it is empty, or in time."""
        for connection in list(agent.older):
            if agent.endpoint.table.session is connection.of_agent:
                continue  # the newer one is not ready
            if not connection.of_agent.leaving and not connection.of_agent.quiet:
                agent.endpoint.leave(connection.of_agent)
            elif (connection.of_agent.quiet and connection.of_agent.idle) or self._left_long_ago(connection):
                self.flush(agent)
                self.deliver(agent, 1_000_000, up=True)
                self.agent_notices(agent, connection)
                self.relay_notices(agent, connection)

    def _left_long_ago(self, connection: Connection) -> bool:
        return connection.left_at is not None and self.now - connection.left_at > self.limits.leave

    def agent_notices(self, agent: Agent, connection: Connection | None = None) -> None:
        """The agent notices a lost connection, its newest or this one; the relay may keep it for some time."""
        connection = connection or agent.connection
        if connection is None:
            return
        if connection is agent.connection:
            agent.connection = agent.older.pop() if agent.older else None
        else:
            agent.older.remove(connection)
        connection.agent_side = False
        if connection.relay_side:
            agent.ghosts.append(connection)
        agent.endpoint.disconnect(connection.of_agent, self.now)
        self.settle(agent)

    def relay_notices(self, agent: Agent, connection: Connection) -> None:
        """The relay notices a lost connection; its agent may keep it for some time."""
        if connection.relay_side:
            connection.relay_side = False
            connection.relay.disconnect(connection.session, self.now)
        if connection in agent.ghosts:
            agent.ghosts.remove(connection)
        self.settle(agent)

    def cut(self, agent: Agent, connection: Connection | None = None) -> None:
        """Both sides notice the loss at once."""
        connection = connection or agent.connection
        self.agent_notices(agent, connection)
        if connection is not None:
            self.relay_notices(agent, connection)

    def intrude(self, agent: Agent, connection: Connection) -> None:
        """A server in between ends a connection, with its own close frame amid the bytes of either direction."""
        for up, wire in ((True, connection.up), (False, connection.down)):
            place = self.rng.randrange(len(wire.bytes) + 1)
            if self.rng.random() < 0.7:
                self.deliver(agent, place, up=up, only=connection)
                place = 0
            wire.intrude(place, more=self.rng.random() < 0.5)
            self.fast["intruded"] += 1
            self.deliver(agent, len(wire.bytes), up=up, only=connection)
            self.fast["spoiled"] += wire.spoiled
        if connection.agent_side:
            self.agent_notices(agent, connection)
        self.relay_notices(agent, connection)

    def black_hole(self, agent: Agent) -> None:
        """From now on a connection takes everything and delivers nothing."""
        if agent.connection is not None:
            agent.connection.up.eats = agent.connection.down.eats = True

    def restart_relay(self) -> None:
        """The relay is killed and started: it knows nothing, and agents notice one by one."""
        self.switch = self._new_relay()
        self.questions.clear()
        for relay in list(self.relays):
            self.end_relay(relay)
        self.relays = [self.switch]

    def upgrade(self) -> None:
        """Another relay accepts new connections; the one before keeps those that it has."""
        self.switch = self._new_relay()
        self.relays.append(self.switch)

    def end_relay(self, relay: Switch) -> None:
        """A relay is gone; agents notice one by one."""
        self.relays.remove(relay)
        for agent in self.agents:
            for connection in [one for one in agent.connections if one.relay is relay]:
                connection.relay_side = False
                if connection in agent.ghosts:
                    agent.ghosts.remove(connection)

    def restart_agent(self, agent: Agent, *, slot: bool) -> None:
        """An agent is killed, with its programs, and started; in a slot it proves that it replaces its predecessor."""
        self.restarts += 1
        agent.ghosts = [connection for connection in agent.connections if connection.relay_side]
        agent.connection, agent.older = None, []
        for ghost in agent.ghosts:
            ghost.agent_side = False
        for end in agent.ends.values():
            end.killed = end.killed or not end.over
        old = agent.endpoint.secret
        agent.ends, agent.dialing = {}, []
        agent.endpoint = self._new_endpoint(serves=agent.serves, predecessor=old if slot else None)
        self.connect(agent)

    # --- what can happen --------------------------------------------------------------------

    def open(self) -> None:
        client = self.rng.choice([agent for agent in self.agents if not agent.serves])
        self.uuids += 1
        uuid = f"{self.uuids:032x}"
        secret = self.uuids.to_bytes(32)
        stream = client.endpoint.table.open(SERVICE, uuid, self.now, secret=secret)
        self._add(client, stream)

    def _add(self, agent: Agent, stream: Stream) -> None:
        number = int(stream.uuid, 16)
        key, peer = (number, number + 100) if stream.is_client else (number + 100, number)
        end = End(stream, key=key, peer_key=peer)
        agent.ends[stream] = end
        self.made.append((agent.name, end))

    def answer_dial(self, agent: Agent, *, accept: bool) -> None:
        if agent.dialing:
            stream = agent.dialing.pop(self.rng.randrange(len(agent.dialing)))
            if stream.ended:
                return
            if accept:
                self._add(agent, stream)
                agent.endpoint.table.accept(stream, self.now)
            else:
                agent.endpoint.table.reset(stream, "host_refused", "refused")

    def write(self, agent: Agent, end: End, size: int) -> None:
        if not end.eof_written and not end.over and not end.parting and end.may_write:
            data = content(end.key, end.written, size)
            end.written += size
            shape = self.rng.randrange(3)
            if self._passed_on(agent, end, data):
                return
            buffer = data if shape == 0 else bytearray(data) if shape == 1 else memoryview(data)
            end.may_write = agent.endpoint.table.write(end.stream, buffer)

    def _passed_on(self, agent: Agent, end: End, data: bytes) -> bool:
        """The sender's fast path, as a driver takes it."""
        table = agent.endpoint.table
        its = [one for one in agent.connections if one.agent_side and one.of_agent is end.stream.session]
        if not its or its[0].full:
            return False
        connection = its[0]
        while parts := agent.endpoint.data_to_send(connection.of_agent, self.limits.batch_max, self.now):
            connection.up.put(parts)  # a free socket mostly has nothing waiting

        def send(flags: int, number: int, value: int, payload: Buffer) -> bool:
            connection.up.put([frames.header(frames.DATA, flags, number, value, len(payload)), payload])
            self.fast["agent"] += 1
            return True

        connection.of_agent.send_data = send
        passed = table.pass_on(end.stream, data)
        connection.of_agent.send_data = None
        return passed

    def write_eof(self, agent: Agent, end: End) -> None:
        if not end.eof_written and not end.over and not end.parting:
            end.eof_written = True
            agent.endpoint.table.write_eof(end.stream)

    def read(self, agent: Agent, end: End, size: int) -> None:
        size = min(size, end.unread)
        if size and not end.killed:
            end.unread -= size
            agent.endpoint.table.consumed(end.stream, size, self.now)

    def give_up(self, agent: Agent, end: End) -> None:
        if not end.over and not end.stream.ended:
            end.reset = "own"
            agent.endpoint.table.reset(end.stream, "cancelled", "gave up")

    def part(self, agent: Agent, end: End) -> None:
        """A program ends and takes nothing more: what it wrote must arrive, and then a reset."""
        if not end.over and not end.stream.ended and not end.parting:
            end.parting = True
            inbound = end.stream.inbound
            end.most_credited = inbound.consumed + end.unread + self.limits.dropped
            agent.endpoint.table.farewells.begin(end.stream, "cancelled", PARTING, self.now)
            self.settle(agent)

    def flush(self, agent: Agent) -> None:
        """Both ends of a session put one batch on the wire."""
        size = self.rng.choice((1, 400, self.limits.batch_max))
        for connection in agent.connections:
            if connection.agent_side:
                parts = agent.endpoint.data_to_send(connection.of_agent, size, self.now)
                if parts:
                    connection.up.put(parts)
            if connection.relay_side:
                parts = connection.session.outbox.collect(size, self.now)
                if parts:
                    connection.down.put(parts)
        self.settle(agent)

    def _flush_relay(self) -> None:
        """Waiting frames at the relay go out on sockets that are free."""
        for agent in self.agents:
            for connection in agent.connections:
                while connection.relay_side and not connection.full:
                    parts = connection.session.outbox.collect(self.limits.batch_max, self.now)
                    if not parts:
                        break
                    connection.down.put(parts)

    def deliver(self, agent: Agent, size: int, *, up: bool, only: Connection | None = None) -> None:
        """Some bytes arrive at one side, unless it has given the connection up."""
        for connection in [only] if only is not None else agent.connections:
            wire = connection.up if up else connection.down
            received = wire.take(size)
            try:
                self._arrive(agent, connection, received, up=up)
            except RemoteProtocolError:
                assert wire.intruded
            assert wire.intruded or (wire.reader.closing is None and not wire.spoiled)
            self.settle(agent)

    def _arrive(self, agent: Agent, connection: Connection, received: list[Frame], *, up: bool) -> None:
        if received and up and connection.relay_side:
            self._flush_relay()
            if is_alone(received) and connection.relay.pass_on(connection.session, *received[0][1:]):
                self.fast["relay"] += 1
            else:
                connection.relay.receive_frames(connection.session, received, self.now)
        elif received and not up and connection.agent_side:
            if not self._taken(agent, connection.of_agent, received):
                agent.endpoint.receive_frames(connection.of_agent, received, self.now)
            self.settle(agent)

    def _taken(self, agent: Agent, session: Session, received: list[Frame]) -> bool:
        """The receiver's fast path, as a driver takes it."""
        table = agent.endpoint.table
        if not is_alone(received) or table.events:
            return False
        _, flags, number, value, payload = received[0]
        stream = session.accept_data(flags, number, value, len(payload), self.now)
        if stream is not None:
            table.now = self.now
            table.deliver(stream, payload)
            table.acknowledge_later(stream, self.now)
            self.fast["receiver"] += 1
        return stream is not None

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for relay in self.relays:
            relay.handle_timeout(self.now)
        for agent in self.agents:
            agent.endpoint.handle_timeout(self.now)
            self.settle(agent)

    def answer_question(self) -> None:
        """The store answers one question of the switch."""
        if self.questions:
            relay, question = self.questions.popleft()
            if isinstance(question, AskOffer):
                relay.offers.allowed(question, Terms(public=True), self.now)
            elif isinstance(question, AskAttach):
                relay.attachments.allowed(question, self.now)
            else:
                relay.opens.allowed(question.route, Terms(public=True), self.now)

    def pump(self, agent: Agent) -> None:
        """Deliver all that an agent and the relay have to send."""
        self.flush(agent)
        self.deliver(agent, 100_000, up=True)
        self.deliver(agent, 100_000, up=False)

    def warm_up(self, *, accept: bool = False) -> None:
        """Let sessions, offers and streams form before anything else happens."""
        for _ in range(4):
            for agent in self.agents:
                self.pump(agent)
                if accept:
                    self.answer_dial(agent, accept=True)
            while self.questions:
                self.answer_question()

    def check_books(self) -> None:
        """Check each relay's tables."""
        for relay in self.relays:
            check_books(relay)

    # --- what the ends report -----------------------------------------------------------------

    def settle(self, agent: Agent) -> None:
        for relay in self.relays:
            self.questions.extend((relay, question) for question in questions_of(relay))
            relay.take_touched()
            for cut in cuts_of(relay):
                assert cut.code == "superseded", f"an honest session was cut: {cut}"
                for other in self.agents:
                    for connection in other.connections:
                        if connection.session is cut.session:
                            self.relay_notices(other, connection)
        while happened := agent.endpoint.take_events():
            for event in happened:
                self._event(agent, event)

    def _data_arrived(self, agent: Agent, stream: Stream, data: memoryview) -> None:
        """The receiver's fast path: data after earlier events."""
        self.settle(agent)
        self._event(agent, events.DataReceived(stream, data))

    def _event(self, agent: Agent, event: events.Event) -> None:
        if isinstance(event, events.StreamRequested):
            agent.dialing.append(event.stream)
            return
        assert not isinstance(event, events.OfferRefused | events.SessionRefused), event
        assert not isinstance(event, events.AttachRefused) or event.code not in BLAME | {"bad_proof"}, event
        stream = getattr(event, "stream", None)
        end = agent.ends.get(stream) if stream is not None else None
        if end is None:
            assert not isinstance(event, events.DataReceived | events.EndReceived), "bytes before the stream was taken"
            return
        assert not end.finished, f"{event} after the end"
        match event:
            case events.DataReceived(_, data):
                assert end.reset is None, "bytes after a reset"
                assert not end.eof_read, "bytes after the end"
                assert data == content(end.peer_key, end.read, len(data)), "wrong bytes"
                end.read += len(data)
                end.unread += len(data)
                assert end.unread <= self.limits.window_max, "more than the window waits"
                if agent.serves:
                    self.delivered_to.setdefault(end.stream.uuid, set()).add(agent.endpoint.process)
            case events.EndReceived():
                assert not end.eof_read
                end.eof_read = True
            case events.StreamOpened():
                end.opened = True
            case events.WritingResumed():
                end.may_write = True
            case events.StreamFinished():
                assert not end.parting, "a program that did not take all seems to have finished"
                end.finished = True
            case events.StreamWasReset(_, code, text):
                assert code not in BLAME, f"{agent.name} {end.stream}: {event}"
                end.reset, end.last_word = code, text
            case _:
                pass
