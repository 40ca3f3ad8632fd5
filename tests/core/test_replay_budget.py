"""What a process asks its programs for, by what it holds already."""

from __future__ import annotations

from kdispatch_protocol.limits import Limits
from tests.core.conversation import SERVICE, Conversation


def test_a_spent_replay_budget_leaves_sips() -> None:
    """Once the budget is spent a program is asked for what its floor leaves, and beyond that for next to nothing."""
    talk = Conversation(limits=Limits(replay=30_000, window_floor=1000))
    table = talk.table
    stream, small = talk.client(), table.open(SERVICE, "77" * 16, talk.now)
    table.write(small, bytes(100))
    table.write(stream, bytes(29_899))
    assert min(table.room(stream), table.room(small)) > 1024 * 1024
    table.write(stream, bytes(1))
    assert (table.room(stream), table.room(small)) == (256, 900)
    table.write(small, bytes(899))
    assert table.room(small) == 256
