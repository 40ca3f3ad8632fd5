"""Whatever processes offer, and whatever is revoked: the registry holds exactly the live, authorised offers."""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.grants import run

#: `make check` plays a sixteenth of the cases, as in ``test_two_ends``.
SHARE = 16 if os.environ.get("KDISPATCH_QUICK") else 1


@settings(max_examples=800 // SHARE)
@given(seed=st.integers(0, 2**64 - 1), clients=st.integers(1, 2), hosts=st.integers(1, 3))
def test_the_registry_is_what_is_offered(seed: int, clients: int, hosts: int) -> None:
    """After every step, each live offer is listed, each listed host has an offer, and indexes and counts are right."""
    run(seed, clients=clients, hosts=hosts)


def test_such_a_world_has_what_it_is_about() -> None:
    """In these worlds processes offer again, withdraw, are revoked and withdrawn, and changes overtake look-ups."""
    happened = sum((run(seed).happened for seed in range(40)), Counter[str]())
    least = {"again": 60, "revoked": 30, "withdrawn": 15, "taken off": 2, "read again": 10}
    assert all(happened[what] > count for what, count in least.items()), happened
