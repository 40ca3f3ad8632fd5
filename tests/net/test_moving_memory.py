"""Agents that move again and again hold no more than others, whatever their peers do."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.endpoint.session import Session
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from tests.net.harness import sizes
from tests.net.loop_stack import Stack, running_stack
from tests.net.stuffed import stuffed
from tests.net.way import way

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]


@dataclass(frozen=True)
class _Load:
    streams: int
    seconds: float  # in each state of the peer
    rotate: float
    budget: float

    @property
    def limits(self) -> Limits:
        replay, credit = (int(self.budget * size) for size in (DEFAULT_LIMITS.replay, DEFAULT_LIMITS.credit))
        return Limits(rotate=self.rotate, replay=replay, credit=credit)


class _Watch:
    """Checks every table all the time; ``moves`` counts the sessions that the agents had in total."""

    def __init__(self, stack: Stack, load: _Load) -> None:
        self._stack = stack
        self._load = load
        self._seen: set[Session] = set()
        self.most: Counter[str] = Counter()

    @property
    def moves(self) -> int:
        return len(self._seen)

    async def for_(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            self._look()
            await asyncio.sleep(0.005)

    def _look(self) -> None:
        found = self._stack.check_budgets(self._load.streams)
        for driver in self._stack.drivers:
            sessions = driver.endpoint.table.sessions
            self._seen.update(sessions)
            found["sessions of an agent"] = max(found.get("sessions of an agent", 0), len(sessions))
        assert found["sessions of an agent"] <= 3
        for what, size in found.items():
            self.most[what] = max(self.most[what], size)


@pytest.mark.parametrize("load", sizes(_Load(20, 1.0, 0.15, 1 / 16), _Load(500, 15.0, 1.0, 1.0)))
async def test_moves_beside_slow_stopped_and_detached_peers(tmp_path: Path, load: _Load) -> None:
    """Bytes kept, granted and queued stay within one session's bounds, and no stream is lost."""
    async with (
        stuffed() as programs,
        running_stack(tmp_path, load.limits) as stack,
        way(RelayUrl.parse(stack.url).port) as to_relay,
    ):
        await stack.host(programs.service.port)
        _, port = await stack.client(url=to_relay.url)
        await programs.connect(port, load.streams)
        watch = _Watch(stack, load)
        filling = asyncio.create_task(programs.fill())
        await watch.for_(load.seconds)  # programs that read nothing
        await filling
        moves = [watch.moves]
        to_relay.hold_answers()  # a client that receives nothing
        await watch.for_(load.seconds)
        moves.append(watch.moves)
        to_relay.cut()  # and one that is disconnected
        await watch.for_(load.seconds)
        moves.append(watch.moves)
        to_relay.mend()
        await watch.for_(load.seconds)
        print(f"sessions after each state: {moves}, at last {watch.moves}; at most {dict(watch.most)}")
        assert (programs.resets, stack.resets) == (0, [])
        assert moves[0] >= 4 and moves[0] < moves[1] < moves[2] < watch.moves
