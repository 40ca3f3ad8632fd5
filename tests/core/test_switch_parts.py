from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.timers import Timers
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_protocol.wire.messages import Open, Reset, reset_frame
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.budget import Bucket, ProcessBudget
from kdispatch_relay.switch.claims import Claim, Doubts
from kdispatch_relay.switch.registry import LiveOffer, OfferedHost, Registry
from kdispatch_relay.switch.routes import Leg, Route

LIMITS = Limits()
SERVICE = "ada/web"
OPEN = Open(service=SERVICE, uuid="00" * 16, limit=100)


def session(budget: ProcessBudget | None = None, limits: Limits = LIMITS) -> AgentSession:
    return AgentSession(limits, budget or ProcessBudget(1 << 20), "192.0.2.1", 0.0)


def leg_of(owner: AgentSession, number: int = 7) -> Leg:
    """A leg towards this session's agent."""
    leg = Route(owner, number, OPEN).client
    owner.legs[number] = leg
    return leg


def sent(leg: Leg, now: float, most: int = 1 << 30) -> list[tuple[int, int, int, int, bytes]]:
    """What the leg puts into the next batch, frame by frame."""
    parts: list[Buffer] = []
    size = leg.pull(most, parts, now)
    message = b"".join(parts)
    assert size == len(message)
    return [(*rest, bytes(payload)) for *rest, payload in frames.decode(message)] if message else []  # type: ignore[misc]  # four numbers


def data(offset: int, payload: bytes, flags: int = 0, number: int = 7) -> tuple[int, int, int, int, bytes]:
    return (frames.DATA, flags, number, offset, payload)


# --- a leg and what waits for it -----------------------------------------------------------


def test_frames_wait_in_order() -> None:
    """Frames go out in the order of arrival, under the leg's own number, with the end after the data."""
    leg = leg_of(session())
    leg.forward(frames.DATA, frames.BLOCKED, 0, b"x" * 2000, 0)
    leg.forward(frames.DATA, 0, 2000, b"y" * 2000, 0)
    leg.forward(frames.FIN, 0, 4000, b"", 0)
    assert leg.ready()
    assert leg.queued
    assert sent(leg, 0) == [
        data(0, b"x" * 2000, frames.BLOCKED),
        data(2000, b"y" * 2000),
        (frames.FIN, 0, 7, 4000, b""),
    ]
    assert not leg.ready()


def test_whole_frames_until_enough() -> None:
    """A turn ends with the frame that passes the requested size."""
    leg = leg_of(session())
    for offset in range(0, 8000, 2000):
        leg.forward(frames.DATA, 0, offset, b"x" * 2000, 0)
    assert len(sent(leg, 0, 1)) == 1
    assert len(sent(leg, 0, 2017)) == 2
    assert leg.ready()


def test_nothing_waits() -> None:
    """A leg without waiting frames sends nothing, owes no ACK and has nothing to drop."""
    leg = leg_of(session())
    assert (leg.ready(), sent(leg, 0), leg.make_ack()) == (False, [], b"")
    leg.drop_queue()


def test_small_frames_are_merged() -> None:
    """Small consecutive data frames go out as one frame, with the flags of all."""
    leg = leg_of(session())
    leg.forward(frames.DATA, 0, 0, b"one", 0)
    leg.forward(frames.DATA, frames.BLOCKED, 3, memoryview(b"two"), 0)
    leg.forward(frames.DATA, 0, 6, b"three", 0)
    assert sent(leg, 0) == [data(0, b"onetwothree", frames.BLOCKED)]


@pytest.mark.parametrize(
    ("type_", "offset", "payload"),
    [(frames.DATA, 4, b"gap"), (frames.DATA, 0, b"again"), (frames.FIN, 3, b""), (frames.DATA, 3, b"x" * 1025)],
    ids=["a gap", "a duplicate", "the end", "a large one"],
)
def test_what_is_not_merged(type_: int, offset: int, payload: bytes) -> None:
    """Only a small frame that continues the last one is merged into it."""
    leg = leg_of(session())
    leg.forward(frames.DATA, 0, 0, b"one", 0)
    leg.forward(type_, 0, offset, payload, 0)
    assert sent(leg, 0) == [data(0, b"one"), (type_, 0, 7, offset, payload)]


def test_runs_end() -> None:
    """A run of merged frames stays well below the largest frame, however many come."""
    leg = leg_of(session())
    for offset in range(0, 100_000, 100):
        leg.forward(frames.DATA, 0, offset, b"x" * 100, 0)
    runs = sent(leg, 0)
    assert len(runs) < 8
    assert max(len(payload) for *_, payload in runs) <= 16 * 1024 + 1024
    assert sum(len(payload) for *_, payload in runs) == 100_000


def test_small_views_are_copied() -> None:
    """A small payload does not keep its message alive, and a large one is not copied."""
    leg = leg_of(session())
    message = bytearray(b"x" * 5000)
    leg.forward(frames.DATA, 0, 0, memoryview(message)[:10], 0)
    leg.forward(frames.DATA, 0, 10, memoryview(message)[10:], 0)
    message[:] = b"y" * 5000
    assert sent(leg, 0) == [data(0, b"x" * 10), data(10, b"y" * 4990)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("data"), st.integers(0, 3000)),
            st.tuples(st.just("fin"), st.just(0)),
            st.tuples(st.just("pull"), st.integers(1, 6000)),
            st.tuples(st.just("drop"), st.just(0)),
            st.tuples(st.just("ack"), st.integers(0, 100)),
        ),
        max_size=40,
    )
)
@settings(max_examples=150)
def test_accounts_return_to_zero(steps: list[tuple[str, int]]) -> None:
    """Waiting bytes are counted in the session and in the process, byte by byte, and the counts return to zero."""
    budget = ProcessBudget(1 << 20)
    owner = session(budget)
    leg = leg_of(owner)
    offset = arrived = 0
    for what, size in steps:
        if what == "data":
            leg.forward(frames.DATA, 0, offset, b"x" * size, 0)
            offset += size
            arrived += size
        elif what == "fin":
            leg.forward(frames.FIN, 0, offset, b"", 0)
        elif what == "pull":
            arrived -= sum(len(payload) for *_, payload in wire_of(leg, size))
        elif what == "drop":
            leg.drop_queue()
            arrived = 0
            assert leg.make_ack() == b""
        else:
            leg.forward_ack(size, size, fin=False)
        assert owner.queued == arrived
        assert budget.queued >= owner.queued
        assert (budget.queued == 0) is (not leg.ready())
    leg.pull(1 << 40, [], 0)
    assert (owner.queued, budget.queued, leg.ready()) == (0, 0, False)


def wire_of(leg: Leg, most: int) -> list[tuple[int, bytes]]:
    """The type and payload of what goes out, including empty payloads, which a decoder would refuse."""
    parts: list[Buffer] = []
    leg.pull(most, parts, 0)
    message = memoryview(b"".join(parts))
    found = []
    while message:
        word, _, _ = frames.HEADER.unpack_from(message)
        end = 16 + (word & 0xFFFFFF)
        found.append((word >> 27, bytes(message[16:end])))
        message = message[end:]
    return found


def test_dropping() -> None:
    """A stream that was reset leaves nothing: its frames, its ACK and its counts are gone."""
    budget = ProcessBudget(1 << 20)
    owner, other = session(budget), session(budget)
    leg, rest = leg_of(owner), leg_of(other)
    for target in (leg, rest):
        target.forward(frames.DATA, 0, 0, b"x" * 5000, 0)
        target.forward(frames.FIN, 0, 5000, b"", 0)
        target.forward_ack(1, 2, fin=True)
    leg.drop_queue()
    leg.drop_queue()
    assert (owner.queued, other.queued) == (0, 5000)
    assert budget.queued == 5000 + 2 * 256
    assert owner.outbox.collect(1 << 20, 0) == []  # its place in the outbox yields nothing
    rest.drop_queue()
    assert budget.queued == 0


def test_what_a_frame_costs() -> None:
    """A waiting frame's overhead counts in the process's budget, not in its agent's credit."""
    budget = ProcessBudget(1 << 20)
    owner = session(budget)
    leg = leg_of(owner)
    leg.forward(frames.FIN, 0, 0, b"", 0)
    assert (owner.queued, budget.queued) == (0, 256)


# --- marks --------------------------------------------------------------------------------


def flags_after(leg: Leg, came: float, now: float) -> int:
    """The flags of a frame that arrived and left at these times."""
    leg.forward(frames.DATA, 0, 0, b"x", came)
    ((_, flags, *_),) = sent(leg, now)
    return flags


def test_marks() -> None:
    """Data is marked once waits have been above 20 ms for 50 ms, until the first short wait."""
    leg = leg_of(session())
    assert flags_after(leg, 0.981, 1.000) == 0  # under 20 ms
    assert flags_after(leg, 1.000, 1.030) == 0  # the first long wait
    assert flags_after(leg, 1.040, 1.070) == 0  # 40 ms later
    assert flags_after(leg, 1.050, 1.081) == frames.MARKED  # 51 ms later
    assert flags_after(leg, 1.080, 1.200) == frames.MARKED
    assert flags_after(leg, 1.200, 1.210) == 0  # a short one
    assert flags_after(leg, 1.210, 1.290) == 0  # begins anew
    assert flags_after(leg, 1.290, 1.345) == frames.MARKED


def test_marks_when_memory_is_short() -> None:
    """Above half of the process's memory all data is marked, however short its wait was."""
    budget = ProcessBudget(10_000)
    leg = leg_of(session(budget))
    assert flags_after(leg, 0, 0) == 0
    budget.queued = 5001
    assert flags_after(leg, 0, 0) == frames.MARKED
    assert flags_after(leg, 0, 0.030) == frames.MARKED


def test_an_end_is_not_marked() -> None:
    """Only data is marked, and the sender's own flags stay."""
    budget = ProcessBudget(0)
    budget.queued = 1
    leg = leg_of(session(budget))
    leg.forward(frames.DATA, frames.BLOCKED, 0, b"x", 0)
    leg.forward(frames.FIN, 0, 1, b"", 0)
    assert [flags for _, flags, *_ in sent(leg, 9)] == [frames.BLOCKED | frames.MARKED, 0]


# --- acknowledgements ---------------------------------------------------------------------


def ack_of(leg: Leg) -> tuple[int, int, int, bool]:
    ((type_, flags, number, received, payload),) = frames.decode(leg.make_ack())
    assert type_ == frames.ACK
    return number, received, frames.ack_limit(payload), bool(flags & frames.FIN_ARRIVED)


def test_acks_that_wait_become_one() -> None:
    """Of several waiting ACKs, the newest numbers go out once, and an older ACK lowers none of them."""
    owner = session()
    leg = leg_of(owner)
    leg.forward_ack(10, 100, fin=False)
    leg.forward_ack(20, 90, fin=True)
    leg.forward_ack(15, 110, fin=False)
    assert leg.limit == 110
    assert ack_of(leg) == (7, 20, 110, True)
    assert leg.make_ack() == b""
    leg.forward_ack(30, 120, fin=False)
    assert len(owner.outbox.collect(1 << 10, 0)) == 1


def test_the_limit_never_goes_down() -> None:
    """The last limit passed on is the highest one."""
    leg = leg_of(session())
    leg.forward_ack(0, 100, fin=False)
    leg.make_ack()
    leg.forward_ack(0, 50, fin=False)
    assert leg.limit == 100


# --- a route -------------------------------------------------------------------------------


def test_early_data_is_held_in_order() -> None:
    """Early data of the current attempt is held in order, up to its limit."""
    route = Route(session(), 1, OPEN)
    route.attempt = 2
    assert route.hold_early(2, 0, b"x" * 1000, LIMITS)
    assert route.hold_early(1, 7, b"of the attempt before", LIMITS)  # of an earlier attempt: dropped
    assert route.hold_early(2, 1000, memoryview(b"y" * 15_384), LIMITS)
    assert route.early == b"x" * 1000 + b"y" * 15_384
    assert not route.hold_early(2, LIMITS.early, b"z", LIMITS)
    route.drop_early()
    assert not route.early
    assert not route.hold_early(2, 1, b"a gap", LIMITS)
    assert route.hold_early(2, 0, b"again", LIMITS)


def test_one_timer_a_route() -> None:
    """A route has one deadline, which a new one replaces."""
    timers = Timers()
    route = Route(session(), 1, OPEN)
    route.set_timer(timers.add(1, lambda _: None))
    route.set_timer(timers.add(2, lambda _: None))
    assert (len(timers), timers.next_deadline()) == (1, 2)
    route.set_timer(None)
    assert len(timers) == 0


def test_reset_frame() -> None:
    """A RESET by number has its code and text."""
    ((type_, _, number, _, payload),) = frames.decode(reset_frame(9, "busy", "Later."))
    assert (type_, number) == (frames.RESET, 9)
    assert Reset.parse(payload) == Reset(code="busy", text="Later.")


# --- a session -----------------------------------------------------------------------------


def test_numbers_are_even_and_new() -> None:
    """The relay's stream numbers are even and never used twice in a session."""
    owner = session()
    assert [owner.take_number() for _ in range(4)] == [2, 4, 6, 8]


def test_overdrawn() -> None:
    """An agent cannot have granted more than its budget and a floor for every stream."""
    owner = session()
    owner.credit = 1000
    assert not owner.overdrawn
    leg = leg_of(owner)
    leg.forward(frames.DATA, 0, 0, b"x" * (1000 + LIMITS.window_floor), 0)
    assert not owner.overdrawn
    leg.forward(frames.DATA, 0, 1 << 20, b"x", 0)
    assert owner.overdrawn


def test_how_sessions_look() -> None:
    """The text form of a session names its process and its source, never a secret."""
    owner = session()
    assert repr(owner) == "<Session new of 192.0.2.1>"
    owner.process = "0123456789abcdef" * 2
    assert repr(owner) == "<Session 01234567 of 192.0.2.1>"


# --- the process's budget, and buckets ---------------------------------------------------------


def test_process_budget() -> None:
    """Above half of the total memory is tight, above all of it spent; exactly at the bound it is neither."""
    budget = ProcessBudget(100)
    for queued, tight, spent in [(0, False, False), (50, False, False), (51, True, False), (100, True, False)]:
        budget.queued = queued
        assert (budget.tight, budget.spent) == (tight, spent)
    budget.queued = 101
    assert (budget.tight, budget.spent) == (True, True)


def test_bucket() -> None:
    """A bucket gives its burst at once, then its rate, and never saves more than the burst."""
    bucket = Bucket(rate=10, burst=3, now=100)
    assert [bucket.take(100) for _ in range(4)] == [True, True, True, False]
    assert not bucket.peek(100.0625)
    assert bucket.peek(100.125)
    assert bucket.take(100.125)
    assert not bucket.take(100.125)
    assert sum(bucket.take(1e6) for _ in range(10)) == 3


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(1, 50), st.integers(1, 20))
@settings(max_examples=100)
def test_bucket_never_gives_more(waits: list[float], rate: float, burst: int) -> None:
    """Over any time, a bucket gives at most its burst and its rate."""
    bucket = Bucket(rate, burst, 0)
    now, given_ = 0.0, 0
    for wait in waits:
        now += wait
        given_ += bucket.take(now)
        given_ += bucket.take(now)
        assert given_ <= burst + rate * now + 1e-6


# --- the registry --------------------------------------------------------------------------------


def registry_of(count: int, seed: int = 7) -> tuple[Registry, list[OfferedHost]]:
    """This many live hosts of one service, each in its own session."""
    registry = Registry(random.Random(seed).randrange, LIMITS, 0.0)
    return registry, [add(registry, f"{n:032x}") for n in range(count)]


def add(registry: Registry, id_: str) -> OfferedHost:
    """The host with one more offer, in a session of its own."""
    host = registry.known(id_, SERVICE, "")
    registry.add(LiveOffer(host, session(), 1, labels={}, digest=""), None, 0.0)
    return host


def remove(registry: Registry, host: OfferedHost) -> None:
    registry.remove(host.offers[-1])


def chi_square(registry: Registry, live: list[OfferedHost], tried: set[str]) -> float:
    """How far from uniform 2,000 picks of a live host are, over the degrees of freedom, in standard deviations."""
    picks = 2000 * len(live)
    found = Counter(picked.id for _ in range(picks) if (picked := registry.pick(SERVICE, tried, None)))
    assert set(found) == {one.id for one in live}
    assert sum(found.values()) == picks
    freedom = len(live) - 1
    square = sum((found[one.id] - 2000) ** 2 / 2000 for one in live)
    return float((square - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_pick_is_uniform(count: int, seed: int) -> None:
    """Each live host is picked as often as any other."""
    registry, hosts = registry_of(count, seed)
    assert chi_square(registry, hosts, set()) < 4


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_pick_is_uniform_among_those_left(seed: int) -> None:
    """Hosts that were tried or are stalled are left out, and the others are picked with equal frequency."""
    registry, hosts = registry_of(8, seed)
    for silent in hosts[::3]:
        silent.session.stalled = True
    answering = [one for one in hosts if not one.session.stalled]
    assert chi_square(registry, answering, set()) < 4
    assert chi_square(registry, answering[1:], {answering[0].id}) < 4


def test_pick_nobody() -> None:
    """No host is picked for an unknown service, or if all were tried, are stalled, or have left."""
    registry, hosts = registry_of(2)
    everybody = {one.id for one in hosts}
    assert registry.pick("ada/other", set(), None) is None
    assert registry.pick(SERVICE, everybody, None) is None
    for one in hosts:
        one.session.stalled = True
    assert registry.pick(SERVICE, set(), None) is None
    for one in hosts:
        one.session.stalled = False
        remove(registry, one)
    assert registry.pick(SERVICE, set(), None) is None


def test_pick_by_pin() -> None:
    """A pin allows only one host, and no other replaces it if it was tried, is stalled or gone."""
    registry, hosts = registry_of(5)
    pinned = hosts[3]
    assert {registry.pick(SERVICE, set(), pinned.id) for _ in range(50)} == {pinned}
    assert registry.pick(SERVICE, {pinned.id}, pinned.id) is None
    assert registry.pick(SERVICE, {hosts[0].id}, pinned.id) is pinned
    pinned.session.stalled = True
    assert registry.pick(SERVICE, set(), pinned.id) is None
    pinned.session.stalled = False
    remove(registry, pinned)
    assert registry.pick(SERVICE, set(), pinned.id) is None


def test_a_host_listed_again() -> None:
    """A host with several offers is listed once, until the last of them is removed."""
    registry, hosts = registry_of(2)
    again = add(registry, hosts[0].id)
    assert again is hosts[0] and registry.hosts_of(SERVICE) == hosts and len(registry) == 2
    remove(registry, again)
    assert registry.hosts_of(SERVICE) == hosts and registry.host(again.id) is again
    remove(registry, again)
    assert registry.hosts_of(SERVICE) == [hosts[1]] and registry.host(again.id) is None and len(registry) == 1


def test_opens_wait_after_the_start() -> None:
    """For 10 s after the relay's start an open waits for hosts to come back."""
    assert Registry(lambda n: 0, LIMITS, 100.0).wait_until(SERVICE) == 110


def test_opens_wait_for_a_lost_host() -> None:
    """For 3 s after a host's session broke an open waits; it does not wait for a withdrawn host."""
    registry, hosts = registry_of(1)
    remove(registry, hosts[0])
    assert registry.wait_until(SERVICE) == 10  # until the time since the start is over
    registry.lost(SERVICE, 50.0)
    assert registry.wait_until(SERVICE) == 53


def test_lost_hosts_are_forgotten() -> None:
    """Services whose hosts were lost long ago leave no entries, however many there are."""
    registry, _ = registry_of(0)
    for number in range(1000):
        registry.lost(f"ann/s{number}", float(number))
    assert len(registry._lost) < 10


def test_forgetting() -> None:
    """A service's entry, and its account's, are removed with the last thing that rests on them."""
    registry, (listed,) = registry_of(1)
    leg = Route(session(), 1, OPEN).client
    leg.ground = registry.rest(leg, Claim(SERVICE, "client", None))
    entry = registry.get(SERVICE)
    remove(registry, listed)
    assert registry.get(SERVICE) is entry and [*registry.within("ada")] == [entry] == [*registry.within(SERVICE)]
    registry.free(leg)
    registry.free(leg)
    assert registry.get(SERVICE) is None and not registry.within("ada") and not registry._accounts


def test_doubts_are_of_one_handle() -> None:
    """A change affects look-ups of its own handle only; without look-ups under way nothing is kept for a handle."""
    doubts = Doubts()
    with doubts.watching("ann/web") as ann, doubts.watching("bob/web") as bob, doubts.watching("ann/ssh") as also:
        doubts.add("ann/other")
        doubts.add("ann")
        doubts.add("eve")
        assert ann is also and (ann.version, bob.version) == (2, 0) and len(doubts) == 2
    assert len(doubts) == 0


def test_one_late_frame_after_a_rest_is_not_marked() -> None:
    """Two late frames with a long gap between them are not marked, because waits did not stay long."""
    owner = AgentSession(Limits(), ProcessBudget(1 << 20), "x", 0.0)
    leg = Route(owner, 7, Open(service="ann/web", uuid="00" * 16, limit=0)).client
    for came in (1.0, 100.0):
        leg.forward(frames.DATA, 0, 0, b"x", came)
        parts: list[Buffer] = []
        leg.pull(1 << 20, parts, came + 0.03)
        [(_, flags, *_)] = frames.decode(b"".join(parts))
        assert flags == 0
