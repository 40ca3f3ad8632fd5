"""The bookkeeping of unauthenticated connections, without a socket."""

from __future__ import annotations

import asyncio
import time

from kdispatch_protocol.limits import Limits
from kdispatch_relay.door.arrivals import Arrival, Arrivals
from kdispatch_relay.sources import networks
from tests.aio.twin import until

FEW = Limits(arrivals=3, arrivals_source=2, hello=60.0)


class Sockets:
    """Creates arrivals, and records the names of those that were dropped."""

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.dropped: list[str] = []

    def __call__(self, name: str, peer: str = "192.0.2.1") -> Arrival | None:
        return self.arrivals.admit(peer, lambda: self.dropped.append(name))

    def admitted(self, name: str, peer: str = "192.0.2.1") -> Arrival:
        arrival = self(name, peer)
        assert arrival is not None
        return arrival


async def test_deadline() -> None:
    """A waiting connection is dropped at its deadline and counted; one that is working, idle or ended is not."""
    sockets = Sockets(Arrivals(limits=Limits(hello=0.05)))
    sockets.admitted("silent")
    sockets.admitted("works").works()
    sockets.admitted("rests").rests()
    sockets.admitted("ended").ends()
    dribbles = sockets.admitted("dribbles")
    for _ in range(4):
        await asyncio.sleep(0.01)
        dribbles.waits()
    await until(lambda: len(sockets.dropped) == 2)
    assert sockets.dropped == ["silent", "dribbles"]
    assert (sockets.arrivals.refused, len(sockets.arrivals)) == ({"timed_out": 2}, 2)


async def test_a_later_request_has_its_own_deadline() -> None:
    """An answered connection gets the full time again, from the first byte of its next request."""
    sockets = Sockets(Arrivals(limits=Limits(hello=0.05)))
    arrival = sockets.admitted("again")
    arrival.works()
    arrival.rests()
    await asyncio.sleep(0.08)
    assert sockets.dropped == []
    began = time.monotonic()
    arrival.waits()
    await until(lambda: sockets.dropped == ["again"])
    assert time.monotonic() - began >= 0.05


async def test_one_source() -> None:
    """A source gets connections up to its limit; other sources are not affected, and ended connections make room."""
    sockets = Sockets(Arrivals(limits=FEW))
    first = sockets.admitted("1")
    sockets.admitted("2")
    assert sockets("3") is None
    assert sockets("mapped", "::ffff:192.0.2.1") is None
    other = sockets.admitted("other", "2001:db8::1")
    other.ends()
    first.ends()
    first.ends()
    sockets.admitted("4")
    assert sockets("5") is None
    assert (sockets.dropped, sockets.arrivals.refused) == ([], {"busy": 3})


async def test_of_all_the_longest_goes() -> None:
    """When there are too many, the connection that was idle or waiting for longest makes room for a new one."""
    sockets = Sockets(Arrivals(limits=FEW))
    sockets.admitted("works", "192.0.2.1").works()
    rests = sockets.admitted("rests", "192.0.2.2")
    sockets.admitted("waits", "192.0.2.3")
    rests.rests()
    sockets.admitted("new", "192.0.2.4")
    assert sockets.dropped == ["waits"]
    sockets.admitted("newer", "192.0.2.5")
    assert sockets.dropped == ["waits", "rests"]
    assert (sockets.arrivals.refused, len(sockets.arrivals)) == ({"busy": 2}, 3)


async def test_nobody_to_let_go() -> None:
    """If all connections have requests under way, a new one is refused."""
    sockets = Sockets(Arrivals(limits=FEW))
    for number in range(3):
        sockets.admitted("works", f"192.0.2.{number}").works()
    assert sockets("new", "192.0.2.9") is None
    assert (sockets.dropped, sockets.arrivals.refused) == ([], {"busy": 1})


async def test_proxies_bring_many() -> None:
    """A trusted proxy and this machine have no limit of their own; a source behind a proxy has one."""
    sockets = Sockets(Arrivals(networks("10.0.0.1"), Limits(arrivals_source=2, hello=60.0)))
    brought = [sockets.admitted("", "10.0.0.1") for _ in range(4)]
    for _ in range(4):
        sockets.admitted("", "127.0.0.1")
    assert [arrival.trusted for arrival in brought] == [True] * 4
    assert [arrival.is_of("198.51.100.7") for arrival in brought] == [True, True, False, False]
    assert brought[0].is_of("198.51.100.7")
    brought[0].ends()
    assert brought[2].is_of("198.51.100.7") and not brought[3].is_of("198.51.100.7")
    assert not any(sockets.arrivals.refused)


async def test_nothing_is_left() -> None:
    """When all connections have ended, nothing is kept of them, whatever their state was."""
    arrivals = Arrivals(limits=FEW)
    sockets = Sockets(arrivals)
    made = [sockets.admitted("", f"192.0.2.{number}") for number in range(3)]
    made[0].works()
    made[1].rests()
    for arrival in made:
        arrival.ends()
        arrival.waits()
        arrival.rests()
    assert not (len(arrivals) or arrivals._idle or arrivals._deadlines or arrivals._groups)


async def test_resting_ones_make_place_for_their_source() -> None:
    """At a source's cap its idle connections go first; if none is idle, the new one is refused."""
    sockets = Sockets(Arrivals(limits=Limits(arrivals_source=2, hello=60.0)))
    sockets.admitted("rests").rests()
    sockets.admitted("waits")
    sockets.admitted("new")
    assert sockets.dropped == ["rests"]
    assert sockets("refused") is None
    assert sockets.arrivals.refused == {"busy": 2}


async def test_room_is_made_by_those_that_had_their_time() -> None:
    """Where room is needed before a cap is reached, connections that have only just come are spared."""
    sockets = Sockets(Arrivals(limits=FEW))
    sockets.admitted("fresh")
    assert not sockets.arrivals.make_room(1.0)
    await asyncio.sleep(0.02)
    assert sockets.arrivals.make_room(0.01)
    assert sockets.dropped == ["fresh"]


async def test_this_machine_counts_for_nobody_behind_a_proxy() -> None:
    """Requests that a trusted proxy sends for itself, or for this machine, have no cap of their own."""
    sockets = Sockets(Arrivals(networks("192.0.2.1"), FEW))
    for name in ("one", "two", "three"):
        assert sockets.admitted(name).is_of("127.0.0.1" if name == "one" else "192.0.2.1")
    assert sockets.dropped == []


async def test_a_proxys_connection_is_nobodys_between_two_requests() -> None:
    """A kept connection of a trusted proxy counts for a source only while it carries that source's request."""
    sockets = Sockets(Arrivals(networks("192.0.2.1"), FEW))
    kept = sockets.admitted("kept")
    for _ in range(5):
        assert kept.is_of("203.0.113.5")
        kept.works()
        kept.rests()
        assert kept.group == ""
