from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.limits import DEFAULT_LIMITS
from kdispatch_protocol.liveness import Liveness, Verdict

ALIVE, ASK, DEAD = Verdict.ALIVE, Verdict.ASK, Verdict.DEAD


def agent() -> Liveness:
    """An agent's: it asks after 15 s and gives up after 30."""
    return Liveness(DEFAULT_LIMITS.ping, DEFAULT_LIMITS.dead_agent, 0.0)


def relay() -> Liveness:
    """A relay's: it only listens, for 45 s."""
    return Liveness(None, DEFAULT_LIMITS.dead_relay, 0.0)


def test_an_agent_asks_then_gives_up() -> None:
    """After 15 s of silence an agent asks, once; after 30 s the other end is dead."""
    live = agent()
    assert live.next_deadline() == 15
    assert live.check(14.9) is ALIVE
    assert live.check(15) is ASK
    assert live.next_deadline() == 30
    assert live.check(20) is ALIVE
    assert live.check(30) is DEAD


def test_a_relay_only_listens() -> None:
    """A relay asks nothing, and gives up after 45 s."""
    live = relay()
    assert live.next_deadline() == 45
    assert live.check(30) is ALIVE
    assert live.check(45.5) is DEAD


def test_a_relay_that_bears_silence() -> None:
    """Who said that it would be quiet is given up later."""
    live = relay()
    live.heard(10)
    live.bear(400)
    assert live.next_deadline() == 410
    assert live.check(409) is ALIVE
    assert live.check(410.5) is DEAD


@pytest.mark.parametrize("make", [agent, relay])
def test_any_byte_is_life(make: Callable[[], Liveness]) -> None:
    """Whatever is heard puts the silence back to nothing."""
    live = make()
    first = live.next_deadline()
    live.heard(10)
    assert live.check(first) is ALIVE
    assert live.next_deadline() == first + 10


def test_an_answer() -> None:
    """An answer to what was asked begins a new silence, with a question of its own."""
    live = agent()
    assert live.check(15) is ASK
    live.heard(15.2)
    assert live.check(30) is ALIVE
    assert live.next_deadline() == pytest.approx(30.2)
    assert live.check(30.2) is ASK
    assert live.check(45.2) is DEAD


@pytest.mark.parametrize(("make", "late"), [(agent, 17.1), (agent, 3600.0), (relay, 47.1), (relay, 1e6)])
def test_a_late_check_is_no_verdict(make: Callable[[], Liveness], late: float) -> None:
    """A check that comes more than 2 s late asks and waits 3 s before it judges."""
    live = make()
    assert live.check(late) is ASK
    assert live.next_deadline() == late + 3


@pytest.mark.parametrize("make", [agent, relay])
def test_silence_after_the_probe(make: Callable[[], Liveness]) -> None:
    """Who says nothing in the 3 s after a late check is dead."""
    live = make()
    assert live.check(100) is ASK
    assert live.check(102.9) is ALIVE
    assert live.check(103) is DEAD


@pytest.mark.parametrize("make", [agent, relay])
def test_an_answer_to_the_probe(make: Callable[[], Liveness]) -> None:
    """Who answers the probe after a late check is alive."""
    live = make()
    assert live.check(100) is ASK
    live.heard(100.5)
    assert live.check(103) is ALIVE
    assert live.next_deadline() > 110


def test_a_probe_before_the_time_is_over() -> None:
    """A probe that a short stop caused does not shorten the silence that is allowed."""
    live = agent()
    assert live.check(18) is ASK
    assert live.check(21) is ALIVE
    assert live.next_deadline() == 30
    assert live.check(30) is DEAD


def test_a_probe_judged_late() -> None:
    """Where the probe's own check is late too, there is no verdict either."""
    live = agent()
    assert live.check(100) is ASK
    assert live.check(110) is ASK
    assert live.check(113) is DEAD


def test_a_silence_that_began_before_a_stop() -> None:
    """Stopped with a question open, the process asks once more on return."""
    live = agent()
    assert live.check(15) is ASK
    assert live.check(600) is ASK
    live.heard(600.1)
    assert live.check(603) is ALIVE


@pytest.mark.parametrize("make", [agent, relay])
def test_a_doubt_is_answered_at_once_or_never(make: Callable[[], Liveness]) -> None:
    """After a sleep that the clock did not see, 3 s decide, however short the silence was; a late judge asks again."""
    live = make()
    live.heard(1)
    live.doubt(2)
    assert live.next_deadline() == 5
    assert live.check(4.9) is ALIVE
    assert live.check(8) is ASK
    assert live.check(11) is DEAD
    live = make()
    live.doubt(2)
    live.heard(2.1)
    assert live.check(5) is ALIVE
    assert live.next_deadline() > 15


@given(st.booleans(), st.lists(st.tuples(st.sampled_from(["heard", "check"]), st.floats(0.1, 40)), max_size=40))
@settings(max_examples=200)
def test_no_verdict_without_silence(passive: bool, steps: list[tuple[str, float]]) -> None:
    """However checks and bytes fall, dead is only who was silent for its whole time, and the deadline moves on."""
    live = relay() if passive else agent()
    patience = 45 if passive else 30
    now = heard = 0.0
    for what, wait in steps:
        now += wait
        if what == "heard":
            live.heard(now)
            heard = now
            continue
        verdict = live.check(now)
        if verdict is DEAD:
            assert now - heard >= patience
            return
        assert live.next_deadline() > now


@given(st.lists(st.floats(0.01, 14.9), max_size=40))
@settings(max_examples=50)
def test_a_busy_session_is_never_asked(waits: list[float]) -> None:
    """While something is heard every 15 s, a check at each deadline finds life."""
    live = agent()
    now = 0.0
    for wait in waits:
        while live.next_deadline() <= now + wait:
            assert live.check(live.next_deadline()) is ALIVE
        now += wait
        live.heard(now)


@given(st.lists(st.floats(0.01, 60), max_size=20))
@settings(max_examples=100)
def test_who_falls_silent_is_found_dead(waits: list[float]) -> None:
    """Checked at each deadline, an end that falls silent is asked once and found dead 30 s after its last byte."""
    live = agent()
    now = 0.0
    for wait in waits:
        now += min(wait, 29)
        while live.next_deadline() <= now:
            assert live.check(live.next_deadline()) is not DEAD
        live.heard(now)
    verdicts = []
    while DEAD not in verdicts:
        when = live.next_deadline()
        verdicts.append(live.check(when))
    assert when == pytest.approx(now + 30)
    assert [verdict for verdict in verdicts if verdict is not ALIVE] == [ASK, DEAD]
