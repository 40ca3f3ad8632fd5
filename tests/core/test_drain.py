"""A draining relay in simulated time: which agents are told when, and when the drain ends."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.messages import Goaway
from kdispatch_relay.switch.drain import Drain
from kdispatch_relay.switch.views import Left
from tests.core.agents import Peer, Relay, connected
from tests.core.intents import cuts_of


class _Watch:
    """Plays a drain of ``seconds`` in small steps, and records which agent was told what, and when."""

    def __init__(self, relay: Relay, peers: list[Peer], seconds: float) -> None:
        self.relay = relay
        self.began = relay.now
        self.peers = peers
        self.sessions = [peer.session for peer in peers]
        self.drain = Drain(relay.switch, self.sessions, seconds, relay.now)
        self.told: dict[Peer, tuple[float, Goaway]] = {}
        self.cuts: dict[Any, float] = {}

    def joined(self, peer: Peer) -> None:
        self.peers.append(peer)
        self.sessions.append(peer.session)

    def play(self, seconds: float) -> None:
        end = self.relay.now + seconds
        while self.relay.now < end:
            after = self.relay.now - self.began
            for peer in self.peers:
                for name, _, _, payload in peer.hear():
                    if name == "GOAWAY":
                        assert peer not in self.told, "each agent is told once"
                        self.told[peer] = (after, Goaway.parse(payload))
            for cut in cuts_of(self.relay.switch):
                assert cut.code == "drain"
                self.cuts[cut.session] = after
                self.relay.switch.disconnect(cut.session, self.relay.now)
            self.relay.wait(0.01)


@pytest.mark.parametrize("seconds", [30.0, 4.0])
def test_hosts_first_then_clients_one_by_one(seconds: float) -> None:
    """Hosts are told within a second, clients after them in equal steps, all within the first half of the time."""
    relay = Relay()
    clients = [relay.agent(number) for number in range(10, 20)]
    hosts = [relay.agent(number, offers=True) for number in range(1, 6)]
    watch = _Watch(relay, clients + hosts, seconds)
    watch.play(seconds / 2 + 0.1)
    of_hosts = [watch.told[host][0] for host in hosts]
    of_clients = [watch.told[client][0] for client in clients]
    assert of_hosts[0] < 0.02 and max(of_hosts) <= min(1.0, seconds / 10)
    assert of_clients == sorted(of_clients) and max(of_hosts) <= of_clients[0]
    step = (seconds / 2 - min(1.0, seconds / 10)) / len(clients)
    assert all(abs(b - a - step) < 0.07 for a, b in itertools.pairwise(of_clients))
    assert of_clients[-1] <= seconds / 2


def test_what_an_agent_is_told() -> None:
    """GOAWAY has the code ``drain``, the time within which to leave, and the time for which the session may go on."""
    relay = Relay()
    client = relay.agent(1)
    watch = _Watch(relay, [client], 20.0)
    watch.play(11)
    after, goaway = watch.told[client]
    assert (goaway.code, goaway.move_ms) == ("drain", 1000)
    assert goaway.try_ms == pytest.approx(1000 * (20 - after), abs=60)


def test_agents_that_drain_are_served() -> None:
    """A session that was told goes on as before: it opens streams, and keeps those that it has."""
    relay = Relay()
    client, host = connected(relay)
    watch = _Watch(relay, [client, host], 10.0)
    watch.play(6)
    assert len(watch.told) == 2
    client.open(3)
    assert "OPEN" in host.names()
    host.opened(4, 1)
    assert "OPENED" in client.names()
    client.say(frames.frame(frames.DATA, 1, 0, b"x"))
    assert host.names() == ["DATA"]
    assert watch.drain.left() == Left(hosts=1, clients=1, streams=2)


def test_an_agent_that_comes_while_it_drains() -> None:
    """An agent that sends HELLO during the drain is welcomed and told, too: at once, if all others were told."""
    relay = Relay()
    first = relay.agent(1)
    watch = _Watch(relay, [first], 10.0)
    watch.play(6)
    watch.joined(Peer(relay, 2))
    assert watch.drain.left() == Left(0, 2, 0)
    late = relay.agent(3)
    watch.joined(late)
    watch.play(0.1)
    assert late in watch.told


def test_hosts_stay_for_clients() -> None:
    """The relay ends a host's session once no client and no stream is left and the host had time for a new session."""
    relay = Relay()
    client, host = connected(relay)
    watch = _Watch(relay, [client, host], 30.0)
    watch.play(10)
    assert not watch.cuts
    client.reset(1)
    watch.play(1)
    assert not watch.cuts, "the client could open another"
    client.lose()
    watch.play(0.1)
    assert host.session in watch.cuts
    assert watch.drain.left() == Left(0, 0, 0)


def test_a_host_alone_has_time_to_move() -> None:
    """A host without streams is kept for two seconds, so that it is listed elsewhere before its session ends."""
    relay = Relay()
    host = relay.agent(1, offers=True)
    watch = _Watch(relay, [host], 30.0)
    watch.play(5)
    assert 2.0 <= watch.cuts[host.session] < 2.2


def test_streams_of_hosts_among_themselves() -> None:
    """An agent that is both host and client counts as a host, and is not ended while it has a stream."""
    relay = Relay()
    one, other = relay.agent(1, offers=True), relay.agent(2, offers=True)
    relay.picks = [1]
    one.open(3)
    other.opened(2)
    watch = _Watch(relay, [one, other], 30.0)
    watch.play(20)
    assert watch.drain.left() == Left(hosts=2, clients=0, streams=1)
    assert not watch.cuts
    one.reset(3)
    watch.play(0.1)
    assert len(watch.cuts) == 2


def test_no_time_at_all() -> None:
    """With a drain time of zero no agent is asked: the gate ends the sessions."""
    relay = Relay()
    client = relay.agent(1)
    watch = _Watch(relay, [client], 0.0)
    watch.play(1)
    assert not watch.told
