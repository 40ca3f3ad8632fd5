"""The fuzzer's small form, and that it finds what is wrong. ``make fuzz`` runs a million inputs."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol import websocket
from kdispatch_protocol.frames import Frame, FrameReader
from tests.fuzz import parsers

_SEEDS = parsers.seeds()


def _play(runs: int) -> Counter[str]:
    chance, counts = random.Random(runs), Counter[str]()
    for _ in range(runs):
        parsers.check(parsers.spoiled(chance.choice(_SEEDS), chance), counts)
    return counts


@pytest.mark.slow
def test_spoiled_conversations() -> None:
    """Read in pieces, thousands of spoiled conversations are judged as they are when read at once."""
    counts = _play(3000)
    assert counts["frames"] > 3000 and counts["bytes of data"] > 30_000
    for end in ("None", "protocol_error", "1000", "1002"):
        assert counts[f"ended: {end}"] > 20, counts


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_input(data: bytes) -> None:
    """Any bytes whatever are judged alike, in pieces and at once, and hold no more than the bound."""
    parsers.check(data, Counter())


@pytest.mark.parametrize("mistake", ["mask does not turn", "begun is forgotten", "a byte is skipped"])
def test_mistakes_are_found(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    """With any of these mistakes in the code the fuzzer stops at once."""
    if mistake == "mask does not turn":
        monkeypatch.setattr(websocket, "_turned", lambda mask, count: mask)
    elif mistake == "begun is forgotten":
        monkeypatch.setattr(FrameReader, "_hold", lambda self, beginning, wanted: None)
    else:
        complete = FrameReader._complete

        def uses_too_much(self: FrameReader, view: memoryview, frames: list[Frame]) -> int:
            return complete(self, view, frames) + (view[0] == 0)

        monkeypatch.setattr(FrameReader, "_complete", uses_too_much)
    with pytest.raises(AssertionError):
        _play(1000)
