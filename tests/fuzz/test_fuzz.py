"""The fuzzer's small form, and proof that it finds mistakes. ``make fuzz`` runs a million inputs."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.wire import websocket
from kdispatch_protocol.wire.frames import Frame, FrameReader
from tests.fuzz import parsers

_SEEDS = parsers.seeds()


def _play(runs: int) -> Counter[str]:
    chance, counts = random.Random(runs), Counter[str]()
    for _ in range(runs):
        parsers.check(parsers.spoiled(chance.choice(_SEEDS), chance), counts)
    return counts


@pytest.mark.slow
def test_spoiled_conversations() -> None:
    """Thousands of spoiled conversations give the same result in pieces as at once."""
    counts = _play(3000)
    assert counts["frames"] > 3000 and counts["bytes of data"] > 30_000
    for end in ("None", "protocol_error", "1000", "1002"):
        assert counts[f"ended: {end}"] > 20, counts


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_input(data: bytes) -> None:
    """Any bytes give the same result in pieces as at once, and the parsers hold no more than the bound."""
    parsers.check(data, Counter())


@pytest.mark.parametrize("mistake", ["mask does not turn", "begun is forgotten", "rest is forgotten"])
def test_mistakes_are_found(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    """With any of these mistakes in the code, the fuzzer fails at once."""
    receive = FrameReader.receive

    def begun(self: FrameReader, piece: bytes, *, ends: bool) -> list[Frame]:
        return receive(self, piece, ends=ends) if ends else []

    def rest(self: FrameReader, piece: bytes, *, ends: bool) -> list[Frame]:
        return receive(self, b"" if self.partial and ends else piece, ends=ends)

    if mistake == "mask does not turn":
        monkeypatch.setattr(websocket, "_turned", lambda mask, count: mask)
    else:
        monkeypatch.setattr(FrameReader, "receive", begun if mistake == "begun is forgotten" else rest)
    with pytest.raises(AssertionError):
        _play(1000)
