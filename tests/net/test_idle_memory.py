"""The memory of idle streams and sessions."""

from __future__ import annotations

import asyncio
import os
from typing import Final

import pytest

from bench.idle import SESSIONS, STREAMS, Counts, idle_sessions, idle_streams
from tests.net.harness import sizes

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_STREAM: Final = {"relay": 3000, "host": 12_000, "client": 12_000}
_SESSION: Final = 30_000


def _loop() -> str:
    """The event loop of this run."""
    return "asyncio" if os.environ.get("KDISPATCH_NO_UVLOOP") == "1" else "uvloop"


@pytest.mark.parametrize("counts", sizes((20, 80), STREAMS))
async def test_an_idle_stream_is_cheap(counts: Counts) -> None:
    """A stream that has echoed 64 B and is idle costs the relay at most 3 KB, and an agent at most 12 KB."""
    cost = await asyncio.to_thread(idle_streams, _loop(), counts)
    print(f"bytes an idle stream, {_loop()}:", ", ".join(f"{who} {size:.0f}" for who, size in cost.items()))
    times = 1 if counts == STREAMS else 10
    assert all(cost[who] <= times * most for who, most in _STREAM.items())


@pytest.mark.accept
async def test_an_idle_session_is_cheap() -> None:
    """A host's idle session costs the relay at most 30 KB."""
    cost = await asyncio.to_thread(idle_sessions, _loop(), SESSIONS)
    print(f"bytes an idle session, {_loop()}: relay {cost:.0f}")
    assert cost <= _SESSION
