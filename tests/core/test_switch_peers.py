"""A session that is no agent's: another relay is at its other end, and hosts are reached over it.

No relay does this yet. The classes here are all that a link to another relay needs for the streams of its hosts: the
legs, the passing of frames, opens and memory are those of the switch, unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.tokens import token_digest
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import ack_frame, early_value, frame
from kdispatch_protocol.wire.identity import host_id, stream_key
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Hello, Offer, Open, Trying
from kdispatch_relay.switch.budget import ProcessBudget
from kdispatch_relay.switch.claims import Claim, Ground
from kdispatch_relay.switch.eviction import make_room
from kdispatch_relay.switch.registry import ListedHost
from kdispatch_relay.switch.revocations import revoke
from kdispatch_relay.switch.sessions import SwitchSession
from tests.core.agents import NO_WAIT, SERVICE, OtherEnd, Peer, Relay, code_of
from tests.core.intents import cuts_of
from tests.core.verdict import held, queued

_PROCESS = "ab" * 16
_CLAIM = Claim(SERVICE, "host", token_digest("t"))
_UUID = f"{1:032x}"


class LinkSession(SwitchSession):
    """A session with another relay."""

    __slots__ = ("far",)

    def __init__(self, limits: Limits, relay: Relay) -> None:
        super().__init__(limits, relay.switch.budget, "198.51.100.1", relay.now)
        self.far: list[FarHost] = []

    @property
    def hosts(self) -> Iterable[ListedHost]:
        return self.far


@dataclass(eq=False)
class Announced:
    """What the other relay said of a host, which rests on a claim here."""

    ground: Ground | None = None


@dataclass(eq=False)
class FarHost:
    """A host whose agent has its session at the other relay."""

    session: SwitchSession
    ground: Ground
    process: str = _PROCESS
    service: str = SERVICE
    listed: bool = True
    since: float = 0.0
    streams: int = 0

    @property
    def id(self) -> str:
        return host_id(self.process, self.service)

    @property
    def stalled(self) -> bool:
        return self.session.stalled

    @property
    def rests(self) -> bytes | None:
        return self.ground.claim.token

    @property
    def labels(self) -> dict[str, str]:
        return {}


class FarRelay(OtherEnd):
    """The other relay, and one host of it that is listed here."""

    session: LinkSession

    def __init__(self, relay: Relay) -> None:
        super().__init__(relay, LinkSession(relay.switch.limits, relay))
        self.session.credit = relay.switch.limits.credit
        self.announced = Announced()
        registry = relay.switch.registry
        self.announced.ground = registry.rest(self.announced, _CLAIM)
        self.host = FarHost(self.session, self.announced.ground)
        self.session.far.append(self.host)
        registry.list_host(self.host, self.announced.ground, relay.now)
        relay.switch.opens.host_appeared(self.host, relay.now)

    def lose(self) -> None:
        """The link breaks: its hosts leave the list, then its streams are lost."""
        registry = self.relay.switch.registry
        self.host.listed = False
        registry.unlist_host(self.host, self.host.ground)
        registry.free(self.announced)
        super().lose()


class Cluster:
    """A relay with a client, and a far relay with a host."""

    def __init__(self, limits: Limits = NO_WAIT) -> None:
        self.relay = Relay(limits)
        self.far = FarRelay(self.relay)
        self.client = self.relay.agent(2)

    def open(self, number: int = 1) -> None:
        """The client sends an OPEN, which the store allows."""
        self.client.open(number, secret="22" * 32)
        self.relay.answer()

    def connect(self) -> None:
        """Open the stream: number 1 at the client, 2 on the link."""
        self.open()
        self.far.opened(2)
        self.client.hear(), self.far.hear()

    def check(self) -> None:
        """The budget is what a full count of all sessions finds."""
        sessions = [*self.relay.switch.sessions, self.far.session]
        budget = self.relay.switch.budget
        assert all(session.held == held(session) for session in sessions if not session.ended)
        assert budget.held == sum(held(session) for session in sessions if not session.ended)
        assert budget.queued == sum(map(queued, sessions))

    def check_nothing_left(self) -> None:
        """No leg is left anywhere, and nothing is counted for one."""
        switch, registry = self.relay.switch, self.relay.switch.registry
        assert not self.far.session.legs and not any(session.legs for session in switch.sessions)
        assert self.far.host.streams == 0 and registry.account(SERVICE).streams == 0
        assert switch.budget.queued == 0
        self.check()


def test_a_stream_over_another_relay() -> None:
    """OPEN, early data, OPENED, DATA both ways, ACK and FIN pass over a session that is no agent's."""
    cluster = Cluster()
    relay, client, far = cluster.relay, cluster.client, cluster.far
    cluster.open()
    assert relay.switch.take_touched() == [far.session, client.session]  # the client waits for the host
    [(name, number, _, payload)] = far.hear()
    asked = Open.parse(payload)
    assert (name, number, asked.service, asked.process) == ("OPEN", 2, SERVICE, client.process)
    assert asked.key == stream_key(b"\x22" * 32, _PROCESS).hex() and asked.secret is None
    [(name, number, _, payload)] = client.hear()
    trying = Trying.parse(payload)
    assert (name, number, trying.process, trying.host) == ("TRYING", 1, _PROCESS, far.host.id)
    client.say(frame(frames.EARLY, 1, early_value(1, 0), b"early"))
    assert far.hear() == [] and far.host.streams == 1
    cluster.check()
    far.opened(2)
    assert client.names() == ["OPENED"]
    assert far.hear() == [("DATA", 2, 0, b"early")]
    client.say(frame(frames.DATA, 1, 5, b"question"))
    far.say(frame(frames.DATA, 2, 0, b"answer"))
    cluster.check()
    assert far.session.queued == 8 and relay.switch.budget.queued > 14
    assert far.hear() == [("DATA", 2, 5, b"question")] and client.hear() == [("DATA", 1, 0, b"answer")]
    far.say(frame(frames.FIN, 2, 6), ack_frame(2, 13, 20_013, fin=False))
    client.say(frame(frames.FIN, 1, 13), ack_frame(1, 6, 1006, fin=True))
    assert client.names() == ["ACK", "FIN"] and far.names() == ["ACK", "FIN"]
    far.say(ack_frame(2, 13, 20_013, fin=True))
    assert client.names() == ["ACK"]
    cluster.check_nothing_left()
    counters = relay.switch.counters
    assert (counters.ended["closed"], counters.sent, counters.received) == (1, 13, 6)


def test_a_frame_that_comes_alone() -> None:
    """The fast path takes DATA to and from such a session, as an agent's."""
    cluster = Cluster()
    cluster.connect()
    sent: list[tuple[int, int, int, bytes]] = []

    def send_fast(flags: int, number: int, value: int, payload: frames.Buffer) -> bool:
        sent.append((flags, number, value, bytes(payload)))
        return True

    far, client, switch = cluster.far.session, cluster.client.session, cluster.relay.switch
    far.send_fast = client.send_fast = send_fast
    assert switch.passing.data_fast(client, 0, 1, 0, b"there") and switch.passing.data_fast(far, 0, 2, 0, b"back")
    assert sent == [(0, 2, 0, b"there"), (0, 1, 0, b"back")]
    assert (far.legs[2].next, client.legs[1].next) == (4, 5)


@pytest.mark.parametrize("by_far", [True, False])
def test_reset(by_far: bool) -> None:
    """Either end of a running stream resets it over such a session, and nothing is left."""
    cluster = Cluster()
    cluster.connect()
    if by_far:
        cluster.far.reset(2, "peer_restarted")
        assert code_of(cluster.client.hear()) == "peer_restarted"
    else:
        cluster.client.reset(1)
        assert code_of(cluster.far.hear()) == "cancelled"
    cluster.check_nothing_left()


def test_a_client_gives_up() -> None:
    """A client that gives up before the answer cancels the attempt at the far host."""
    cluster = Cluster()
    cluster.open()
    cluster.far.hear()
    cluster.client.reset(1)
    assert code_of(cluster.far.hear()) == "cancelled"
    cluster.check_nothing_left()


def test_a_far_host_refuses() -> None:
    """When the far host refuses, the next attempt goes to a host here, and early data is dropped meanwhile."""
    cluster = Cluster()
    near = cluster.relay.agent(1, offers=True)
    cluster.open()
    cluster.client.say(frame(frames.EARLY, 1, early_value(1, 0), b"early"))
    cluster.far.hear(), cluster.client.hear()
    cluster.far.reset(2, "host_refused")
    assert near.names() == ["OPEN"] and cluster.client.names() == ["TRYING"]
    assert cluster.far.host.streams == 0 and not cluster.far.session.legs
    cluster.check()


def test_the_other_relay_is_lost() -> None:
    """Its running streams get GONE at their clients, and an open that waited for its host goes on elsewhere."""
    cluster = Cluster()
    cluster.connect()
    cluster.open(3)
    cluster.client.say(frame(frames.DATA, 1, 0, b"waits"))
    near = cluster.relay.agent(1, offers=True)
    cluster.client.hear()
    cluster.far.lose()
    assert cluster.client.hear()[0][:2] == ("GONE", 1)
    assert near.names() == ["OPEN"]
    near.reset(2)
    cluster.check_nothing_left()
    assert cluster.far.session.held == 0


def test_the_client_is_lost() -> None:
    """The other relay hears GONE for each running stream of a client's lost session."""
    cluster = Cluster()
    cluster.connect()
    cluster.client.lose()
    assert cluster.far.hear() == [("GONE", 2, 0, b"")]
    cluster.check_nothing_left()


def test_gone_of_the_other_relay() -> None:
    """GONE from the other relay reaches the client, and DATA under an unknown number is answered by GONE."""
    cluster = Cluster()
    cluster.connect()
    cluster.far.say(frame(frames.GONE, 2))
    assert cluster.client.hear() == [("GONE", 1, 0, b"")]
    cluster.far.say(frame(frames.DATA, 2, 0, b"late"))
    assert cluster.far.hear() == [("GONE", 2, 0, b"")]
    cluster.check_nothing_left()


def test_a_silent_relay() -> None:
    """While an OPEN sent there timed out, its hosts are not asked; any frame from there ends that."""
    cluster = Cluster(Limits(open_wait_start=60, open_wait_lost=0))
    cluster.open()
    cluster.far.hear(), cluster.client.hear()
    cluster.relay.wait(NO_WAIT.open_host)
    assert cluster.far.names() == ["RESET", "PING"] and code_of(cluster.client.hear()) == "host_timeout"
    cluster.open(3)
    assert cluster.far.hear() == []  # it waits for a host
    cluster.far.say(frame(frames.PONG))
    assert cluster.far.names() == ["OPEN"]
    cluster.check()


def test_an_open_that_waits() -> None:
    """A far host that is listed gets the opens that wait for a host."""
    relay = Relay(Limits(open_wait_start=60))
    client = relay.agent(2)
    client.open()
    relay.answer()
    far = FarRelay(relay)
    assert far.names() == ["OPEN"] and client.names() == ["TRYING"]


def test_near_and_far_hosts_are_picked_alike() -> None:
    """``pick`` returns hosts here and elsewhere, each as often as ``choose`` says; a pin finds a far one."""
    relay = Relay()
    relay.agent(1, offers=True)
    far = FarRelay(relay)
    relay.picks = [0, 1, 1, 0]
    registry = relay.switch.registry
    near = registry.host(registry.hosts_of(SERVICE)[0].id)
    assert near is not None and len(registry) == registry.account(SERVICE).hosts == 2
    assert [registry.pick(SERVICE, (), None) for _ in range(4)] == [near, far.host, far.host, near]
    assert registry.pick(SERVICE, (), far.host.id) is far.host
    far.lose()
    assert registry.hosts_of(SERVICE) == [near]
    assert len(registry) == registry.account(SERVICE).hosts == 1


def test_frames_of_agents_are_not_expected() -> None:
    """Such a session has no identity: HELLO, OFFER, OPEN and ATTACH there are refused. PING is answered."""
    cluster = Cluster()
    secret = "11" * 32
    offer = Offer(service=SERVICE, host=host_id(_PROCESS, SERVICE), digest="00" * 32, token="t")
    for type_, message in (
        (frames.HELLO, Hello(versions=[1], secret=secret)),
        (frames.OFFER, offer),
        (frames.OPEN, Open(service=SERVICE, uuid=_UUID, limit=1)),
        (frames.ATTACH, Attach.of([])),
    ):
        with pytest.raises(RemoteProtocolError):
            cluster.far.say(frame(type_, 1, payload=message.encode()))
    cluster.far.say(frame(frames.PING, value=7))
    assert cluster.far.hear() == [("PONG", 0, 7, b"")]


def test_frames_without_effect() -> None:
    """Frames without effect count there as everywhere, and too many end the session."""
    cluster = Cluster(Limits(idle_burst=100))
    cluster.far.say(*[frame(frames.PONG)] * 300)
    assert [(cut.session, cut.code) for cut in cuts_of(cluster.relay.switch)] == [(cluster.far.session, "rate_limited")]


def test_more_than_its_credit_waits() -> None:
    """Data that waits for another relay counts against the credit of its session, and too much ends the session."""
    cluster = Cluster()
    cluster.connect()
    cluster.far.session.credit = 0
    limit = cluster.relay.switch.limits.window_floor + 1
    cluster.far.say(ack_frame(2, 0, limit, fin=False))
    cluster.client.say(frame(frames.DATA, 1, 0, bytes(limit)))
    [cut] = cuts_of(cluster.relay.switch)
    assert (cut.session, cut.code) == (cluster.far.session, "credit_exceeded")
    cluster.check()


def test_the_largest_session() -> None:
    """When memory is short, the session with another relay is cut if it is the largest of those looked at."""
    cluster = Cluster()
    budget = ProcessBudget(100_000)
    client, far = cluster.client.session, cluster.far.session
    far.add_queued(90_000, 1)
    budget.queued, budget.held = far.queued, 20_000
    [cut] = make_room([client, far], budget)
    assert (cut.session, cut.code) == (far, "slow_consumer")


def test_a_far_hosts_right_ends() -> None:
    """The streams of a far host rest on its claim, and end when that does not hold any more."""
    cluster = Cluster()
    cluster.connect()
    revoke(cluster.relay.switch, {_CLAIM: ("revoked", "The token was revoked.")}, cluster.relay.now)
    assert code_of(cluster.far.hear()) == "revoked" and code_of(cluster.client.hear()) == "withdrawn"
    cluster.check_nothing_left()


def test_a_host_comes_here() -> None:
    """A host that moves here from the other relay attaches its stream, and the leg over that relay is closed."""
    cluster = Cluster()
    relay, client = cluster.relay, cluster.client
    host = Peer(relay, 1)
    cluster.far.host.process = host.process
    cluster.connect()
    host.say(frame(frames.HELLO, payload=Hello(versions=[1], secret=host.secret.hex()).encode()))
    for peer, other, role in ((client, host, "client"), (host, client, "host")):
        entry = AttachEntry(
            uuid=_UUID, service=SERVICE, role=role, peer=other.process, number=3, received=0, limit=65536, attach=1,
            proof="00" * 32,
        )  # fmt: skip
        peer.say(frame(frames.ATTACH, payload=Attach.of([entry], token="t").encode()))
        relay.answer()
    assert list(client.session.legs) == list(host.session.legs) == [3]
    assert not cluster.far.session.legs and cluster.far.host.streams == 0
    assert relay.switch.counters.moved == 1 and relay.switch.counters.attached == 1
    assert client.names() == ["ATTACH"] and host.names() == ["WELCOME", "ATTACH"]
    cluster.check()
