"""Two ends, a relay between them, and wires that split, delay and interleave at will."""

from __future__ import annotations

import os
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.replay import Outbound
from kdispatch_relay.switch.routes import Leg, Route
from tests.core.world import World, play

SEEDS = st.integers(0, 2**64 - 1)
#: `make check` plays an eighth of the cases, under coverage; `make test` all of them: 5,200.
SHARE = 8 if os.environ.get("KDISPATCH_QUICK") else 1


def _run(seed: int, *, steps: int, losses: bool, resets: bool, clients: int = 1, hosts: int = 2) -> World:
    rng = random.Random(seed)
    world = World(rng, clients=clients, hosts=hosts)
    play(rng, world, steps, losses=losses, resets=resets)
    world.quiesce()
    world.check()
    return world


@settings(max_examples=2600 // SHARE)
@given(seed=SEEDS, hosts=st.integers(1, 3))
def test_nothing_is_lost_repeated_or_swapped(seed: int, hosts: int) -> None:
    """While sessions last, every byte arrives once and in order, within credit, and every stream ends at both ends."""
    _run(seed, steps=120, losses=False, resets=False, hosts=hosts)


@settings(max_examples=1600 // SHARE)
@given(seed=SEEDS)
def test_programs_that_give_up_leave_nothing_behind(seed: int) -> None:
    """A reset at any moment ends the stream at both ends and gives back all it held."""
    _run(seed, steps=120, losses=False, resets=True, clients=2)


@settings(max_examples=1000 // SHARE)
@given(seed=SEEDS)
def test_lost_sessions_end_their_streams(seed: int) -> None:
    """When sessions are lost, streams are reset at both ends or not begun, and never go wrong."""
    _run(seed, steps=160, losses=True, resets=True, hosts=3)


@pytest.mark.accept
def test_ten_thousand_cases() -> None:
    """The same worlds, by plain seeds, as many as are played in half a minute; the rate is printed."""
    began = time.monotonic()
    for seed in range(10_000):
        _run(seed, steps=120 + seed % 3 * 40, losses=seed % 3 == 2, resets=seed % 3 > 0, hosts=1 + seed % 3)
    seconds = time.monotonic() - began
    print(f"10,000 cases in {seconds:.0f} s, {10_000 / seconds:.0f} a second")
    assert seconds < 120


def test_a_world_moves_real_data() -> None:
    """The property tests above are about something: streams finish, hosts differ, dials are refused, bytes flow."""
    finished = read = 0
    refused: set[str | None] = set()
    for seed in range(150):
        world = _run(seed, steps=200, losses=True, resets=True)
        finished += sum(end.finished for _, end in world.made)
        read += sum(end.read for _, end in world.made)
        refused |= {end.reset for _, end in world.made}
    assert finished > 150
    assert read > 30_000
    assert {"own", "resume_expired", "cancelled", "host_refused", "host_timeout"} <= refused


def _early_is_not_sent_again(self: Outbound) -> None:
    pass


def _early_goes_to_any_try(self: Route, attempt: int, offset: int, payload: memoryview, limits: object) -> bool:
    self.early += payload
    return True


def _early_is_kept(self: Route) -> None:
    pass


def _ack_is_swallowed(self: Leg, received: int, limit: int, *, fin: bool) -> None:
    self.limit = max(self.limit, limit)


def _acknowledge_too_much(self: Outbound, received: int, limit: int, *, fin: bool) -> int:
    self.limit = max(self.limit, limit + 64)
    self.fin_acked = self.fin_acked or fin
    return 0


@pytest.mark.parametrize(
    ("owner", "name", "mistake"),
    [
        (Outbound, "rewind", _early_is_not_sent_again),
        (Route, "hold_early", _early_goes_to_any_try),
        (Route, "drop_early", _early_is_kept),
        (Leg, "forward_ack", _ack_is_swallowed),
        (Outbound, "acknowledge", _acknowledge_too_much),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_planted_mistakes_are_found(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, mistake: object) -> None:
    """The property tests fail when the code is wrong: each of these mistakes is found within 2,000 runs."""
    monkeypatch.setattr(owner, name, mistake)
    with pytest.raises(Exception, match=r".*"):  # noqa: PT012 - whichever check sees it first
        for seed in range(2000):
            _run(seed, steps=120, losses=False, resets=False)
