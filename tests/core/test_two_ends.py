"""Two ends, a relay between them, hostile wires, and every fault: all guarantees hold."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdispatch_protocol.endpoint.farewells import Farewells
from kdispatch_protocol.endpoint.growth import Growth
from kdispatch_protocol.endpoint.resume import Resumption
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.endpoint.states import LegState
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.wire.messages import AttachEntry
from tests.core import storms, verdict
from tests.core.storms import CALM, LAST_WORDS, LOSSES, PLANNED, STORM, TRUSTY, Storm
from tests.core.world import World

SEEDS = st.integers(0, 2**64 - 1)
#: `make check` plays a sixteenth of the cases, under coverage; `make test` all of them: 5,600.
SHARE = 16 if os.environ.get("KDISPATCH_QUICK") else 1
#: `make chaos` asks for more.
RUNS = int(os.environ.get("KDISPATCH_RUNS", "10000"))


def run(seed: int, storm: Storm, *, steps: int = 140, clients: int = 1, hosts: int = 2) -> World:
    """Play one world and check it."""
    rng = random.Random(seed)
    world = World(rng, clients=clients, hosts=hosts)
    storms.play(rng, world, steps, storm)
    verdict.quiesce(world)
    verdict.check(world, all_finish=storm in {LOSSES, PLANNED})
    return world


@settings(max_examples=1600 // SHARE)
@given(seed=SEEDS, hosts=st.integers(1, 3))
def test_nothing_is_lost_repeated_or_swapped(seed: int, hosts: int) -> None:
    """While sessions last, every byte arrives once and in order, within credit, and every stream ends at both ends."""
    run(seed, CALM, hosts=hosts)


@settings(max_examples=1600 // SHARE)
@given(seed=SEEDS, hosts=st.integers(1, 3))
@example(seed=333, hosts=1)  # a stream begun again while the relay keeps a newer session that is lost
@example(seed=10944, hosts=1)  # a question in a newer session that was lost is asked again in the older one
@example(seed=51437, hosts=2)  # a host that moves is one host, and its streams are counted once
@example(seed=110722559793046, hosts=1)  # an ATTACH that a later one has overtaken
@example(seed=601325916290571, hosts=2)  # a join that was under way when the newer session was lost
@example(seed=948375718426085, hosts=1)  # a host whose session is lost only for the relay gets a stream again
@example(seed=40512, hosts=1)  # of two halves of one agent the later one counts, in any order of arrival
@example(seed=80994, hosts=1)  # a stream begun again is not the one that is given up
@example(seed=1381540, hosts=1)  # an OPEN that is cancelled on an older session, after the ATTACH on a newer one
def test_an_open_stream_survives_lost_sessions_and_relays(seed: int, hosts: int) -> None:
    """Whatever connections are lost and relays are killed, each opened stream finishes with all its bytes."""
    run(seed, LOSSES, hosts=hosts)


@pytest.mark.parametrize(("seed", "storm", "hosts", "clients"), [
    (661054956, LOSSES, 1, 2),  # a client that is joined to a stream which its host has just replaced
    (2086943037, TRUSTY, 2, 1),  # of three numbers of a stream the newest was joined, and its session lost
])  # fmt: skip
def test_worlds_that_failed(seed: int, storm: Storm, hosts: int, clients: int) -> None:
    """Worlds that once failed, of shapes that the tests here do not play, hold."""
    run(seed, storm, hosts=hosts, clients=clients, steps=160)


@settings(max_examples=1600 // SHARE)
@given(seed=SEEDS, clients=st.integers(1, 2))
def test_planned_moves_are_not_noticed(seed: int, clients: int) -> None:
    """Agents that move, at any moment and to other relays, lose nothing, and no open stream ends because of it."""
    run(seed, PLANNED, clients=clients)


@settings(max_examples=1200 // SHARE)
@given(seed=SEEDS)
def test_programs_that_give_up_leave_nothing_behind(seed: int) -> None:
    """A reset at any moment, with the peer there or away, ends the stream at both ends and frees all that it held."""
    run(seed, TRUSTY, clients=2)


@settings(max_examples=1200 // SHARE)
@given(seed=SEEDS, everything=st.booleans())
def test_last_words_arrive_before_the_reset(seed: int, everything: bool) -> None:
    """All that a program wrote before it ended arrives, whatever is lost, and then the reset does."""
    run(seed, replace(STORM, partings=True) if everything else LAST_WORDS, clients=2)


@settings(max_examples=1200 // SHARE)
@given(seed=SEEDS, clients=st.integers(1, 2))
@example(seed=222673562687, clients=1)  # given up while it is attached again, and joined under an older number
def test_any_storm_ends_well_or_is_told(seed: int, clients: int) -> None:
    """With killed agents and long waits, a stream still finishes or is reset at both ends in time, and never errs."""
    run(seed, STORM, clients=clients, hosts=3)


@pytest.mark.accept
def test_many_cases() -> None:
    """The same worlds with plain seeds, as many as requested; the rate is printed."""
    began = time.monotonic()
    kinds = itertools.cycle((LOSSES, STORM, PLANNED, TRUSTY, LOSSES, CALM, LAST_WORDS))
    for seed, storm in zip(range(RUNS), kinds, strict=False):
        run(seed, storm, steps=100 + seed % 3 * 60, clients=1 + seed % 2, hosts=1 + seed % 3)
    seconds = time.monotonic() - began
    print(f"{RUNS:,} cases in {seconds:.0f} s, {RUNS / seconds:.0f} a second")
    assert seconds < RUNS / 20


def test_a_world_drops_data_behind_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """These worlds drop data after an end: dropped bytes are credited, and more arrive than the bound allows."""
    met = Counter[bool]()
    dropped = Farewells.dropped

    def count(self: Farewells, stream: Stream, count: int, now: float) -> None:
        if stream.farewell is not None and not stream.ended:
            met[stream.farewell.credited_to - stream.inbound.consumed < count] += 1
        dropped(self, stream, count, now)

    monkeypatch.setattr(Farewells, "dropped", count)
    for seed in range(200):
        run(seed, LAST_WORDS, clients=2)
    assert met[False] > 5 and met[True] > 5


def test_a_world_moves_real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """These worlds do real work: streams finish, resume, move, are refused, expire, and bytes flow."""
    finished = read = 0
    ends: Counter[str | None] = Counter()
    joined = Counter[bool]()
    moved = Counter[tuple[str, bool]]()
    fast = Counter[str]()
    join = Resumption._join

    def count(self: Resumption, session: Session, stream: Stream, entry: AttachEntry, now: float) -> None:
        joined[stream.opened] += 1
        join(self, session, stream, entry, now)

    monkeypatch.setattr(Resumption, "_join", count)
    switch = Resumption._switch

    def follow_move(stream: Stream, session: Session, number: int) -> None:
        moved["joined" if stream.leg is LegState.JOINED else "detached", stream.session is session] += 1
        switch(stream, session, number)

    monkeypatch.setattr(Resumption, "_switch", staticmethod(follow_move))
    windows: Counter[str] = Counter()
    window = Growth.window

    def follow(self: Growth, before: int, *others: Any) -> int:
        after = window(self, before, *others)
        windows.update(grown=after > before, shrunk=after < before)
        return after

    monkeypatch.setattr(Growth, "window", follow)
    for seed, storm in zip(range(160), itertools.cycle((LOSSES, STORM, TRUSTY)), strict=False):
        world = run(seed, storm, steps=200)
        finished += sum(end.finished for _, end in world.made)
        read += sum(end.read for _, end in world.made)
        ends.update(end.reset for _, end in world.made)
        fast += world.fast
    assert finished > 300
    assert read > 50_000
    assert windows["grown"] > 20 and windows["shrunk"] > 2

    assert fast["agent"] > 40 and fast["relay"] > 25 and fast["receiver"] > 25
    assert fast["intruded"] > 20 and fast["spoiled"] > 1
    assert moved["joined", False] > 3 and moved["joined", True] > 1 and moved["detached", False] > 1
    assert joined[True] > 75 and joined[False] > 1
    assert {"own", "resume_expired", "peer_restarted", "cancelled", "host_timeout", "unknown_stream"} <= set(ends)
