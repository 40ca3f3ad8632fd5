from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.limits import DEFAULT_LIMITS
from kdispatch_protocol.session.liveness import Cut, Liveness, Verdict

ALIVE, ASK, DEAD = Verdict.ALIVE, Verdict.ASK, Verdict.DEAD


def agent() -> Liveness:
    """An agent's liveness: it asks after 15 s and gives up after 30 s."""
    return Liveness(DEFAULT_LIMITS.ping, DEFAULT_LIMITS.dead_agent, 0.0)


def relay() -> Liveness:
    """A relay's liveness: it only listens, for 45 s."""
    return Liveness(None, DEFAULT_LIMITS.dead_relay, 0.0)


def exchange(live: Liveness, now: float) -> None:
    """Let a message arrive and be answered, right before a check that finds nothing else."""
    live.check(now)
    live.heard(now)
    live.passed(now, now)


def test_an_agent_asks_then_gives_up() -> None:
    """After 15 s of silence an agent asks; after 30 s it takes the other end for dead."""
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
    """A relay gives up later on an agent that has announced that it will be quiet."""
    live = relay()
    live.heard(10)
    live.bear(400)
    assert live.next_deadline() == 410
    assert live.check(409) is ALIVE
    assert live.check(410.5) is DEAD


@pytest.mark.parametrize("make", [agent, relay])
def test_any_byte_is_life(make: Callable[[], Liveness]) -> None:
    """Any received byte restarts the time until the end counts as dead."""
    live = make()
    for now in range(10, 100, 10):
        live.heard(now)
        assert live.check(now + 5) is not DEAD


def test_an_answer() -> None:
    """An answer to a question begins a new silence, and its own question follows 15 s after the last one."""
    live = agent()
    assert live.check(15) is ASK
    live.heard(15.2)
    live.passed(15.2, 15.0)
    assert live.next_deadline() == 30
    assert live.check(30) is ASK
    assert live.check(45) is ASK
    assert live.check(45.2) is DEAD


@pytest.mark.parametrize("way", ["arrived", "sent"])
def test_a_way_that_is_silent(way: str) -> None:
    """An end that only receives asks every 15 s; so does an end that sends much and receives no message."""
    live = agent()
    asked = []
    for now in range(1, 61):
        live.heard(now)
        live.passed(now if way == "arrived" else None, now if way == "sent" else None)
        if live.check(now) is ASK:
            asked.append(now)
    assert asked == [15, 30, 45, 60]


def test_control_frames_are_life_and_no_traffic() -> None:
    """WebSocket pings of a box in between keep the session alive, but do not replace an agent's own question."""
    live = agent()
    asked = 0
    for now in range(10, 200, 10):
        live.heard(now)
        verdict = live.check(now)
        asked += verdict is ASK
        assert verdict is not DEAD
    assert asked == 9  # at 20, 40 ...: one check every ten seconds


@pytest.mark.parametrize(("make", "late"), [(agent, 17.1), (agent, 3600.0), (relay, 47.1), (relay, 1e6)])
def test_a_late_check_is_no_verdict(make: Callable[[], Liveness], late: float) -> None:
    """A check that comes more than 2 s late asks, and waits 3 s before it decides."""
    live = make()
    assert live.check(late) is ASK
    assert live.next_deadline() == late + 3


@pytest.mark.parametrize("make", [agent, relay])
def test_silence_after_the_probe(make: Callable[[], Liveness]) -> None:
    """An end that sends nothing in the 3 s after a late check is dead."""
    live = make()
    assert live.check(100) is ASK
    assert live.check(102.9) is ALIVE
    assert live.check(103) is DEAD


@pytest.mark.parametrize("make", [agent, relay])
def test_an_answer_to_the_probe(make: Callable[[], Liveness]) -> None:
    """An end that answers the probe after a late check is alive."""
    live = make()
    assert live.check(100) is ASK
    live.heard(100.5)
    assert live.check(103) is ALIVE
    assert live.next_deadline() > 110


def test_a_probe_before_the_time_is_over() -> None:
    """A probe caused by a short stop does not shorten the allowed silence."""
    live = agent()
    assert live.check(18) is ASK
    assert live.check(21) is ALIVE
    assert live.next_deadline() == 30
    assert live.check(30) is DEAD


def test_a_probe_judged_late() -> None:
    """If the probe's own check is late too, there is no verdict either."""
    live = agent()
    assert live.check(100) is ASK
    assert live.check(110) is ASK
    assert live.check(113) is DEAD


def test_a_silence_that_began_before_a_stop() -> None:
    """A process that was stopped with an open question asks once more when it continues."""
    live = agent()
    assert live.check(15) is ASK
    assert live.check(600) is ASK
    live.heard(600.1)
    assert live.check(603) is ALIVE


@pytest.mark.parametrize("make", [agent, relay])
def test_a_doubt_is_answered_at_once_or_never(make: Callable[[], Liveness]) -> None:
    """After a sleep that the clock did not see, 3 s decide, however short the silence was; a late check asks again."""
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
    """With any checks and bytes, an end is dead only after its full time of silence, and the deadline moves on."""
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
    """While messages go both ways every 15 s, each check finds the session alive and asks nothing."""
    live = agent()
    now = 0.0
    for wait in waits:
        while live.next_deadline() <= now + wait:
            assert live.check(live.next_deadline()) is ALIVE
        now += wait
        exchange(live, now)


@given(st.lists(st.floats(0.01, 60), max_size=20))
@settings(max_examples=100)
def test_who_falls_silent_is_found_dead(waits: list[float]) -> None:
    """With a check at each deadline, an end that falls silent is asked, and found dead 30 s after its last byte."""
    live = agent()
    now = 0.0
    for wait in waits:
        now += min(wait, 29)
        while live.next_deadline() <= now:
            assert live.check(live.next_deadline()) is not DEAD
        exchange(live, now)
    verdicts = []
    while DEAD not in verdicts:
        when = live.next_deadline()
        verdicts.append(live.check(when))
    assert when == pytest.approx(now + 30)
    assert set(verdicts[:-1]) <= {ALIVE, ASK} and ASK in verdicts


# --- what a session tells of its path -------------------------------------------------------------


def test_what_was_survived() -> None:
    """A silence counts as survived if an answer follows, whoever ended it; a shorter one later changes nothing."""
    live = agent()
    exchange(live, 1)
    assert live.check(14) is ALIVE
    live.passed(14.5, None)  # it came after the check: the silence had lasted at least 13 s by then
    assert live.survived == 13
    exchange(live, 16)
    assert live.check(31) is ASK
    live.check(31.1)
    assert live.survived == 13  # the question alone proves nothing
    live.passed(31.2, 31.0)
    assert live.survived == 15


def test_the_silence_before_an_end() -> None:
    """A session that is closed during a silence ended because of it; at a PING, because of the one before."""
    live = agent()
    exchange(live, 5)
    assert live.silence(14, Cut.CLOSED) == 9
    assert live.check(15) is ALIVE
    assert live.check(20) is ASK
    assert live.silence(20.3, Cut.CLOSED) == 15
    assert live.silence(29, Cut.CLOSED) == 9  # after the unanswered PING
    assert live.silence(35, Cut.UNANSWERED) == 15


def test_what_was_not_answered_later() -> None:
    """Anything that was sent during a silence, and what needs no answer, begins another silence."""
    live = agent()
    exchange(live, 1)
    live.check(8)
    live.passed(None, 8.5)
    live.check(9)
    assert live.silence(9, Cut.CLOSED) == 7
    assert live.silence(20, Cut.CLOSED) == 11.5
    live = agent()
    exchange(live, 1)
    live.check(1.05)
    live.passed(None, 1.1)  # an ACK after the data that arrived
    live.check(6)
    assert live.silence(10, Cut.CLOSED) == pytest.approx(8.9)


@pytest.mark.parametrize("cut", list(Cut))
def test_a_busy_session_that_is_lost(cut: Cut) -> None:
    """An end that sends until the session is lost, while nothing comes back, was not silent."""
    live = agent()
    exchange(live, 1)
    for now in range(2, 32):
        live.passed(None, now - 0.01)
        verdict = live.check(now)
    assert verdict is DEAD
    assert live.silence(31, cut) < 1


def test_a_process_that_stood_still() -> None:
    """After a stop or a sleep, a session proves nothing until a message has arrived."""
    live = agent()
    told = []
    live.check(100)
    told.append(live.unsure)
    live.heard(100.1)
    told.append(live.unsure)
    live.passed(100.1, 100.0)
    told.append(live.unsure)
    live.doubt(101)
    told.append(live.unsure)
    assert told == [True, True, False, True]


@given(st.lists(st.tuples(st.floats(0.01, 20), st.booleans(), st.booleans()), max_size=40), st.floats(0.01, 30))
@settings(max_examples=300)
def test_silences_are_never_made_up(steps: list[tuple[float, bool, bool]], last: float) -> None:
    """Whatever passes and whenever it is checked, no reported silence is longer than the real one."""
    live = agent()
    now = 0.0
    times = [0.0]  # times of messages in either direction
    for wait, arrives, sends in steps:
        now += wait
        if arrives:
            live.heard(now)
        if arrives or sends:
            live.passed(now if arrives else None, now if sends else None)
            times.append(now)
        if live.check(now) is ASK:
            times.append(now)
    now += last
    gaps = [later - earlier for earlier, later in zip(times, [*times[1:], now], strict=True)]
    assert live.survived <= max(gaps) + 1e-9
    assert live.silence(now, Cut.UNANSWERED) <= max(gaps) + 1e-9
