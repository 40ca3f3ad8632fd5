"""What an agent learns about its path from the ends of its sessions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch.network.path_limits import PathLimits, Paths
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.session.liveness import Course, Cut

HOUR = 3600.0
HOME, OFFICE = "192.168.1.7", "10.1.2.3"
RELAY = "https://relay.example"
USUAL = (1500.0, 2100.0)


class Agent:
    """One agent's sessions, one after the other; ``told`` is what it has logged."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.paths = Paths(limits)
        self.now = 100.0
        self.told: list[str] = []
        self.path = self.reach(HOME)

    def reach(self, own: str, relay: str = RELAY) -> PathLimits:
        self.path, learnt = self.paths.reached(own, relay, self.now)
        self.told += [learnt] if learnt else []
        return self.path

    def session(
        self,
        lasted: float,
        *,
        silence: float = 0.0,
        survived: float = 0.0,
        cut: Cut | None = Cut.CLOSED,
        said: bool = False,
    ) -> None:
        """A session that ends in this way, and another one at once."""
        self.now += lasted
        self.paths.over(self.path, Course(lasted, survived, silence, cut), said=said)
        self.reach(HOME)

    @property
    def ping(self) -> float:
        return self.path.ping(self.now)

    @property
    def rotate(self) -> tuple[float, float]:
        return self.path.rotate(self.now)


# --- idle limits ----------------------------------------------------------------------------------


def test_a_path_that_cuts_the_silent() -> None:
    """Two sessions that are cut after the same silence halve it for later ones, and that is logged once."""
    agent = Agent()
    agent.session(40, silence=12)
    assert agent.ping == 15 and not agent.told
    agent.session(70, silence=12.4)
    assert agent.ping == 6
    assert agent.told == [
        "The path to the relay cuts sessions that are silent for 12 s: from now on the agent sends something every 6 s."
    ]
    assert agent.path.idle_limit(agent.now) == 12 and agent.rotate == USUAL


@pytest.mark.parametrize("cut", list(Cut))
def test_a_path_that_forgets_the_silent(cut: Cut) -> None:
    """If a session ends at its PING, by a reset or without an answer, PINGs come sooner, twice."""
    agent = Agent()
    for lasted in (45, 80):
        agent.session(lasted, silence=15, cut=cut)
    assert agent.ping == 7.5
    for lasted in (45, 80):
        agent.session(lasted, silence=7.5, cut=cut)
    assert agent.ping == 5
    for lasted in (45, 80):
        agent.session(lasted, silence=5, cut=cut)
    assert agent.ping == 5 and len(agent.told) == 2


def test_once_is_nothing() -> None:
    """Cuts after different silences count as chance, however many there are."""
    agent = Agent()
    for silence in (14, 9, 6, 11, 7.5, 14.5):
        agent.session(100, silence=silence)
    assert agent.ping == 15


def test_a_silence_that_was_survived() -> None:
    """A cut in a silence that the session survived before is not due to the silence, however often it happens."""
    agent = Agent()
    for _ in range(9):
        agent.session(random.uniform(20, 1000), silence=12, survived=15)
    assert agent.ping == 15


def test_proof_in_between() -> None:
    """A session that survives such a silence, however it ends, clears the path of the suspicion."""
    agent = Agent()
    agent.session(100, silence=12)
    agent.session(1800, survived=15, cut=None, said=True)
    agent.session(100, silence=12)
    assert agent.ping == 15
    agent.session(100, silence=12)
    assert agent.ping == 6


def test_what_is_said_is_no_cut() -> None:
    """Sessions that end with a goodbye, or because this machine was stopped, prove nothing about the path."""
    agent = Agent()
    for _ in range(4):
        agent.session(60, silence=12, said=True)
        agent.session(60, silence=12, cut=None)
    assert agent.ping == 15 and agent.rotate == USUAL


def test_a_relay_that_is_away() -> None:
    """If the relay is not reached again at once, the relay or the network ended the session, not the path."""
    agent = Agent()
    for _ in range(4):
        agent.paths.over(agent.path, Course(60, 0, 12, Cut.CLOSED), said=False)
        agent.paths.unreachable()
        agent.reach(HOME)
    assert agent.ping == 15 and agent.rotate == USUAL


def test_another_network() -> None:
    """A session that ended because the machine changed its network is no cut; what was learnt stays with each."""
    agent = Agent()
    for own in (OFFICE, HOME) * 4:
        agent.paths.over(agent.path, Course(60, 0, 12, Cut.CLOSED), said=False)
        agent.reach(own)
    assert agent.ping == 15
    agent.session(60, silence=12)
    agent.session(60, silence=12)
    assert agent.ping == 6
    assert agent.reach(OFFICE).ping(agent.now) == 15
    assert agent.reach(HOME, "https://other.example").ping(agent.now) == 15
    assert agent.reach(HOME).ping(agent.now) == 6


def test_addresses_of_one_network() -> None:
    """IPv6 addresses of one network are one path; an unknown kind of address is one, too."""
    paths = Paths(DEFAULT_LIMITS)
    one, _ = paths.reached("2001:db8::1", RELAY, 0)
    assert paths.reached("2001:db8::ffff:2", RELAY, 0)[0] is one
    assert paths.reached("2001:db8:0:1::1", RELAY, 0)[0] is not one
    assert paths.reached("fe80::1%eth0", RELAY, 0)[0] is paths.reached("fe80::2%eth0", RELAY, 0)[0]
    assert paths.reached("", RELAY, 0)[0] is paths.reached("/run/socket", RELAY, 0)[0]


def test_few_networks_are_kept() -> None:
    """Of many networks the most recently used are kept."""
    paths = Paths(DEFAULT_LIMITS)
    first, _ = paths.reached("10.0.0.1", RELAY, 0)
    for number in range(2, 8):
        paths.reached(f"10.0.0.{number}", RELAY, 0)
        assert paths.reached("10.0.0.1", RELAY, 0)[0] is first
    for number in range(8, 18):
        paths.reached(f"10.0.0.{number}", RELAY, 0)
    assert paths.reached("10.0.0.1", RELAY, 0)[0] is not first


# --- ages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "least", "most"), [(30, 15, 21), (60, 30, 42), (3600, *USUAL), (15, 10, 10.5), (11, 10, 10)]
)
def test_a_path_that_cuts_the_old(age: float, least: float, most: float) -> None:
    """After two sessions were cut at one age, sessions are left before it, at 10 s at the earliest."""
    agent = Agent()
    agent.session(age, silence=1, survived=9)
    assert agent.rotate == USUAL
    agent.session(age * 1.01, silence=7, survived=15)
    assert agent.rotate == pytest.approx((least, most))
    assert len(agent.told) == 1 and f"are {age:.3g} s old" in agent.told[0] and agent.ping == 15


def test_ages_by_chance() -> None:
    """Ages that differ by more than a twentieth, and ages that other sessions passed, make no rule."""
    agent = Agent()
    for age in (100, 110, 122, 100):
        agent.session(age)
    agent.session(1000, cut=None, said=True)
    agent.session(100)
    agent.session(5)
    agent.session(5)
    assert agent.rotate == USUAL


def test_silence_or_age() -> None:
    """An idle session cut at 12 s may have been cut for either; if a busy one is, too, it is the age."""
    agent = Agent()
    agent.session(12, silence=12)
    agent.session(12, silence=12)
    assert agent.ping == 6 and agent.rotate == USUAL
    agent.session(12, silence=6, survived=6)
    agent.session(12, silence=6, survived=6)
    assert agent.rotate == (10, 10)


# --- for how long ---------------------------------------------------------------------------------


def test_it_is_tried_without() -> None:
    """A learnt limit is tested after an hour; a single cut restores it for two hours, then four, up to a day."""
    agent = Agent()
    agent.session(60, silence=12)
    agent.session(60, silence=12)
    for hours in (1, 2, 4, 8, 16, 24, 24):
        agent.now += hours * HOUR - 1
        assert agent.ping == 6
        agent.now += 1
        assert agent.ping == 15
        agent.session(60, silence=12)
        assert agent.ping == 6
    assert len(agent.told) == 1


def test_it_is_forgotten() -> None:
    """A path that lets such a silence pass in the test has changed: all that was learnt is forgotten."""
    agent = Agent()
    agent.session(60, silence=12)
    agent.session(60, silence=12)
    agent.now += HOUR
    agent.session(1800, survived=15, cut=None, said=True)
    agent.session(60, silence=12)
    assert agent.ping == 15
    agent.session(60, silence=12)
    assert agent.ping == 6 and len(agent.told) == 2


_COURSES = st.builds(
    Course,
    st.floats(0, 1e5),
    st.floats(0, 20),
    st.floats(0, 20),
    st.sampled_from([*Cut, None]),
)


@given(st.lists(st.tuples(_COURSES, st.booleans(), st.booleans(), st.floats(0, 1e6)), max_size=60))
@settings(max_examples=200)
def test_bounds(ends: list[tuple[Course, bool, bool, float]]) -> None:
    """In any case an agent asks every 5 to 15 s, and leaves sessions at 10 s at the earliest."""
    agent = Agent()
    for course, said, reached, wait in ends:
        agent.now += wait
        agent.paths.over(agent.path, course, said=said)
        if not reached:
            agent.paths.unreachable()
        agent.reach(HOME)
        assert 5 <= agent.ping <= 15
        least, most = agent.rotate
        assert 10 <= least <= most <= 2100


@given(st.floats(5.5, 14.9), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_every_idle_limit_is_learnt(limit: float, silently: bool, chance: random.Random) -> None:
    """Behind a box that cuts after any silence above 5 s, idle sessions are cut four times at most, then survive.

    Either the box signals the cut at once, or the session ends at its next PING.
    """
    agent = Agent()
    cuts = 0
    while agent.ping > limit - 1 / 10:
        silence = agent.ping if silently else limit
        agent.session(chance.uniform(20, 1800), silence=silence)
        cuts += 1
        if agent.ping == 5:
            break
    assert cuts <= 4
    assert agent.ping < limit


@given(st.lists(st.floats(1, 1800), min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_a_good_path_is_left_alone(ages: list[float], chance: random.Random) -> None:
    """Sessions that were silent and are cut at random, as by a killed relay, teach no idle limit."""
    agent = Agent()
    for age in ages:
        agent.session(15 + age, silence=chance.uniform(0, 15), survived=15)
        assert agent.ping == 15
