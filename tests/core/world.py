"""Agents, a relay and hostile wires between them, without a loop, a socket or a clock.

The ends are the real classes: endpoints, the switch, the WebSocket reader. Only
what moves between them is played: every byte goes over a wire that delivers in
pieces of any size, at any time; programs write, read, stop and give up at
random; time jumps. Whatever happened, the checks at the end must hold.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kdispatch_protocol import events, websocket
from kdispatch_protocol.endpoint import Endpoint, host_id
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.messages import Offer
from kdispatch_protocol.states import END_STATES
from kdispatch_protocol.streams import Stream
from kdispatch_relay.switch.sessions import Session
from kdispatch_relay.switch.switch import AskOffer, Question, Switch

#: Everything small, so that every bound is met in a few steps.
SMALL = Limits(
    window=2048,
    window_tight=1024,
    window_floor=256,
    early=256,
    credit=8192,
    data=200,
    unsent=512,
    replay=6000,
    ack_bytes=1024,
    quantum=150,
    batch_max=1500,
    opens=4,
    streams_client=64,
    open_wait_start=1.0,
    open_wait_lost=1.0,
)
SERVICE = "ann/web"
#: Codes by which one end says that the other broke the rules. An honest world never hears them.
BLAME = frozenset({"credit_exceeded", "offset_mismatch", "protocol_error", "bad_request", "unknown_service"})
_PATTERN = bytes(i * 7 % 251 for i in range(251)) * 40


def content(key: int, offset: int, size: int) -> bytes:
    """The bytes of a direction: any lost, repeated or swapped piece shows."""
    start = (offset + key) % 251
    return _PATTERN[start : start + size]


class Wire:
    """One direction of a connection: WebSocket bytes on their way."""

    def __init__(self, *, to_server: bool) -> None:
        self.bytes = bytearray()
        self.reader = websocket.WebSocketReader(server=to_server, max_message=256 * 1024)
        self._mask = b"\x1f\x2e\x3d\x4c" if to_server else None

    def put(self, parts: list[bytes | bytearray | memoryview]) -> None:
        payload = websocket.mask_parts(parts, self._mask) if self._mask else b"".join(parts)
        self.bytes += websocket.frame_head(websocket.BINARY, len(payload), self._mask) + payload

    def take(self, size: int) -> list[bytes | bytearray | memoryview]:
        piece = bytes(self.bytes[:size])
        del self.bytes[:size]
        own = self.reader.buffer()
        if own is not None and len(own) >= len(piece):
            own[: len(piece)] = piece
            return self.reader.buffer_filled(len(piece))
        return self.reader.receive_data(piece)


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
    reset: str | None = None
    finished: bool = False


@dataclass
class Agent:
    """One agent process and its session."""

    name: str
    endpoint: Endpoint
    serves: bool
    ends: dict[Stream, End] = field(default_factory=dict)
    dialing: list[Stream] = field(default_factory=list)
    session: Session | None = None
    up: Wire = field(default_factory=lambda: Wire(to_server=True))
    down: Wire = field(default_factory=lambda: Wire(to_server=False))


#: A weight, and what then happens.
Action = tuple[int, Callable[[], None]]


class World:
    """A relay with its agents; ``rng`` decides everything that is left to chance."""

    def __init__(self, rng: random.Random, *, clients: int = 1, hosts: int = 2, limits: Limits = SMALL) -> None:
        self.rng = rng
        self.now = 100.0
        self.limits = limits
        self.switch = Switch("00" * 16, rng.randrange, self.now, limits=limits)
        self.agents: list[Agent] = []
        self.questions: deque[Question] = deque()
        self.uuids = 0
        self.delivered_to: dict[str, set[str]] = {}  # stream uuid -> hosts that got a byte of it
        self.made: list[tuple[str, End]] = []
        for number in range(clients + hosts):
            endpoint = Endpoint(bytes([number]) * 32, limits=limits)
            agent = Agent(f"agent{number}", endpoint, serves=number >= clients)
            if agent.serves:
                endpoint.offer(
                    Offer(service=SERVICE, host=host_id(endpoint.process, SERVICE), digest="00" * 32, token="t")
                )
            self.agents.append(agent)
            self.connect(agent)

    # --- sessions ------------------------------------------------------------------------

    def connect(self, agent: Agent) -> None:
        agent.up, agent.down = Wire(to_server=True), Wire(to_server=False)
        agent.session = self.switch.connect(agent.name, self.now)
        agent.endpoint.connect()

    def cut(self, agent: Agent) -> None:
        if agent.session is not None:
            session, agent.session = agent.session, None
            self.switch.disconnect(session, self.now)
            agent.endpoint.disconnect()
            self.settle(agent)

    # --- what can happen --------------------------------------------------------------------

    def open(self) -> None:
        client = self.rng.choice([agent for agent in self.agents if not agent.serves])
        self.uuids += 1
        uuid = f"{self.uuids:032x}"
        stream = client.endpoint.table.open(SERVICE, uuid, self.now)
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
        if not end.eof_written and end.reset is None and not end.finished and end.may_write:
            data = content(end.key, end.written, size)
            end.written += size
            shape = self.rng.randrange(3)
            buffer = data if shape == 0 else bytearray(data) if shape == 1 else memoryview(data)
            end.may_write = agent.endpoint.table.write(end.stream, buffer)

    def write_eof(self, agent: Agent, end: End) -> None:
        if not end.eof_written and end.reset is None and not end.finished:
            end.eof_written = True
            agent.endpoint.table.write_eof(end.stream)

    def read(self, agent: Agent, end: End, size: int) -> None:
        size = min(size, end.unread)
        if size:
            end.unread -= size
            agent.endpoint.table.consumed(end.stream, size, self.now)

    def give_up(self, agent: Agent, end: End) -> None:
        if end.reset is None and not end.finished and not end.stream.ended:
            end.reset = "own"
            agent.endpoint.table.reset(end.stream, "cancelled", "gave up")

    def flush(self, agent: Agent) -> None:
        """Both ends of a session put one batch on the wire."""
        if agent.session is None:
            return
        size = self.rng.choice((1, 400, self.limits.batch_max))
        parts = agent.endpoint.data_to_send(size, self.now)
        if parts:
            agent.up.put(parts)
        parts = agent.session.outbox.collect(size, self.now)
        if parts:
            agent.down.put(parts)
        self.settle(agent)

    def deliver(self, agent: Agent, size: int, *, up: bool) -> None:
        """Some bytes arrive at one side."""
        if agent.session is None:
            return
        if up:
            for message in agent.up.take(size):
                if agent.session is not None:
                    self.switch.receive_message(agent.session, message, self.now)
            assert agent.up.reader.closing is None
        else:
            for message in agent.down.take(size):
                agent.endpoint.receive_message(message, self.now)
            assert agent.down.reader.closing is None
        self.settle(agent)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.switch.handle_timeout(self.now)
        for agent in self.agents:
            agent.endpoint.handle_timeout(self.now)
            self.settle(agent)

    def answer_question(self) -> None:
        """The store answers one question of the switch."""
        if self.questions:
            question = self.questions.popleft()
            if isinstance(question, AskOffer):
                self.switch.offer_allowed(question, public=True, now=self.now)
            else:
                self.switch.opens.allowed(question.route, public=True, now=self.now)

    def warm_up(self) -> None:
        """Let sessions and offers come about before anything interesting happens."""
        for _ in range(4):
            for agent in self.agents:
                self.flush(agent)
                self.deliver(agent, 100_000, up=True)
                self.deliver(agent, 100_000, up=False)
            while self.questions:
                self.answer_question()

    # --- what the ends report -----------------------------------------------------------------

    def settle(self, agent: Agent) -> None:
        self.questions.extend(self.switch.take_questions())
        self.switch.take_touched()
        for cut in self.switch.take_cuts():
            raise AssertionError(f"an honest session was cut: {cut}")
        while happened := agent.endpoint.take_events():
            for event in happened:
                self._event(agent, event)

    def _event(self, agent: Agent, event: events.Event) -> None:
        if isinstance(event, events.StreamRequested):
            agent.dialing.append(event.stream)
            return
        assert not isinstance(event, events.OfferRefused | events.SessionRefused), event
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
                assert end.unread <= self.limits.window, "more than the window waits"
                if agent.serves:
                    self.delivered_to.setdefault(end.stream.uuid, set()).add(agent.name)
            case events.EndReceived():
                assert not end.eof_read
                end.eof_read = True
            case events.WritingResumed():
                end.may_write = True
            case events.StreamFinished():
                end.finished = True
            case events.StreamWasReset(_, code, _):
                assert code not in BLAME, f"{agent.name} {end.stream}: {event}"
                end.reset = code
            case _:
                pass

    # --- the end of it all ---------------------------------------------------------------------

    def quiesce(self) -> None:
        """No more faults: everybody reads, writes the end, and time goes on until nothing moves."""
        for agent in self.agents:
            if agent.session is None:
                self.connect(agent)
        for _ in range(4000):
            moved = self._settle_once()
            if not moved and not self._waiting():
                return
            if not moved:
                self.pass_time(0.5)
        raise AssertionError(f"a stall: {self._waiting()}")

    def _settle_once(self) -> bool:
        moved = bool(self.questions)
        self.answer_question()
        for agent in self.agents:
            while agent.dialing:
                moved = True
                self.answer_dial(agent, accept=True)
            for end in agent.ends.values():
                moved = moved or end.unread > 0
                self.read(agent, end, end.unread)
                self.write_eof(agent, end)
            self.flush(agent)
            for up, wire in ((True, agent.up), (False, agent.down)):
                if wire.bytes:
                    moved = True
                    self.deliver(agent, len(wire.bytes), up=up)
        return moved

    def _waiting(self) -> list[str]:
        return [f"{name} {end.stream}" for name, end in self.made if end.stream.state not in END_STATES]

    def check(self) -> None:
        """What must hold after :meth:`quiesce`, whatever happened before."""
        hosts: dict[str, list[End]] = {}  # a host that accepted too late has an end as well, and it was reset
        for _, end in self.made:
            assert end.stream.state in END_STATES
            if not end.stream.is_client:
                hosts.setdefault(end.stream.uuid, []).append(end)
        for _, client in self.made:
            uuid = client.stream.uuid
            assert len(self.delivered_to.get(uuid, ())) <= 1, "a request reached two services"
            if client.stream.is_client and client.finished:
                (host,) = [end for end in hosts[uuid] if end.finished]
                assert (client.read, host.read) == (host.written, client.written), "bytes are missing"
                assert client.eof_read and host.eof_read
            elif client.stream.is_client:
                assert client.reset is not None, "neither finished nor reset"
        for agent in self.agents:
            table = agent.endpoint.table
            assert not table.by_uuid and not table.by_number, "a stream was not forgotten"
            assert table.replay_held == 0 and table.budget.promised == 0, "not everything was given back"
            assert agent.session is not None
            assert not agent.session.legs and agent.session.queued == 0
            assert agent.session.unanswered == 0 and agent.session.streams_opened == 0
        assert self.switch.budget.queued == 0
        assert all(host.streams == 0 for host in self.switch.registry.hosts_of(SERVICE))


def play(rng: random.Random, world: World, steps: int, *, losses: bool = True, resets: bool = True) -> None:
    """Let ``steps`` random things happen."""
    if rng.random() < 0.9:
        world.warm_up()
    refusing = rng.choice((0.1, 0.5, 0.8))
    for _ in range(steps):
        agent = rng.choice(world.agents)
        actions = _session_actions(rng, world, agent, refusing)
        if agent.ends:
            actions += _program_actions(rng, world, agent, rng.choice(list(agent.ends.values())), resets=resets)
        if losses and rng.random() < 0.03:
            actions.append((10, functools.partial(world.cut if agent.session else world.connect, agent)))
        if rng.random() < 0.01:
            actions.append((3, functools.partial(world.pass_time, rng.choice((5.1, 16.0, 31.0)))))
        rng.choices([act for _, act in actions], [weight for weight, _ in actions])[0]()


def _session_actions(rng: random.Random, world: World, agent: Agent, refusing: float) -> list[Action]:
    return [
        (1 if world.made else 20, world.open),
        (4, lambda: world.flush(agent)),
        (4, lambda: world.deliver(agent, rng.choice((1, 3, 17, 200, 5000)), up=True)),
        (4, lambda: world.deliver(agent, rng.choice((1, 3, 17, 200, 5000)), up=False)),
        (2, lambda: world.answer_dial(agent, accept=rng.random() >= refusing)),
        (1, lambda: world.pass_time(rng.choice((0.001, 0.03, 0.11, 1.0)))),
        (2, world.answer_question),
    ]


def _program_actions(rng: random.Random, world: World, agent: Agent, end: End, *, resets: bool) -> list[Action]:
    actions: list[Action] = [
        (4, lambda: world.write(agent, end, rng.choice((1, 2, 30, 256, 700)))),
        (4, lambda: world.read(agent, end, rng.choice((1, 100, 5000)))),
        (1, lambda: world.write_eof(agent, end)),
    ]
    if resets and rng.random() < 0.1:
        actions.append((1, lambda: world.give_up(agent, end)))
    return actions


__all__ = ["SERVICE", "SMALL", "End", "RemoteProtocolError", "World", "content", "play"]
