"""Under load, a successor on the same port replaces the relay, and no program notices it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.faults.transfer import Transfers, transfers
from tests.net.harness import MIB, sizes
from tests.net.tcp import echo, service
from tests.upgrade.load import Echoes, Visits, rank
from tests.upgrade.site import site

pytestmark = pytest.mark.slow

_RATE: Final = 2 * MIB  # bytes a second of a bulk stream, each way
_PATIENCE: Final = 60.0


@dataclass(frozen=True)
class _Size:
    """The load, how often the relay is replaced, its drain time, and a factor by which the bounds are wider."""

    echoes: int
    bulk: int
    visits: float  # a second
    times: int
    drain: float
    slack: float


_SIZES: Final = sizes(
    _Size(10, 2, visits=20, times=1, drain=1.0, slack=10), _Size(50, 8, visits=20, times=10, drain=4.0, slack=1)
)


@pytest.mark.parametrize("size", _SIZES)
async def test_rolling_upgrade(tmp_path: Path, size: _Size) -> None:
    """When relays replace each other under load, no stream is lost, no connection fails, and few echoes wait.

    The test takes the longest echo of each stream in each change: 99 of 100 are below 250 ms, and all below 2 s.
    """
    drain = ("--drain-time", f"{size.drain:g}")
    async with (
        transfers(1, _PATIENCE) as through,
        service(echo) as echoing,
        site(tmp_path, [echoing.port, through.port], drain) as here,
    ):
        loop = asyncio.get_running_loop()
        echoes, visits = Echoes(here.ports[0], 0.02), Visits(here.ports[0], size.visits)
        changes: list[float] = []
        statuses: set[int] = set()
        over = asyncio.Event()
        async with echoes.running(size.echoes), visits.running():
            bulk = [asyncio.create_task(_bulk(through, here.ports[1], size, over)) for _ in range(size.bulk)]
            await asyncio.sleep(0.5)
            for _ in range(size.times):
                changes.append(loop.time())
                older = await here.relay.replace(*drain)
                statuses.add(await older.ended(size.drain + 10))
            await asyncio.sleep(0.5)
            changes.append(loop.time())
            over.set()
            await asyncio.gather(*bulk)
        pauses = [pause for begin, end in itertools.pairwise(changes) for pause in echoes.longest(begin, end)]
        told = (
            f"{size.times} changes in {changes[-1] - changes[0]:.1f} s; of {len(pauses)} longest echoes p50 "
            f"{rank(pauses, 50) * 1e3:.0f} ms, p99 {rank(pauses, 99) * 1e3:.0f}, max {max(pauses) * 1e3:.0f}; "
            f"{len(visits.took)} visits, longest {max(visits.took) * 1e3:.0f} ms; {through.moved / MIB:.0f} MiB of "
            f"bulk in {through.finished} exchanges, longest pause {through.longest * 1e3:.0f} ms"
        )
        print(told)
        assert echoes.lost == [], here.logs()
        assert visits.failed == [], here.logs()
        assert statuses == {0}, here.logs()
        assert all("finished: every agent has left" in older.err for older in here.relay.older), here.logs()
        assert rank(pauses, 99) < 0.25 * size.slack, f"{told}\n{here.logs()}"
        assert max(pauses) < 2.0 * size.slack, f"{told}\n{here.logs()}"


async def _bulk(through: Transfers, port: int, size: _Size, over: asyncio.Event) -> None:
    """Exchanges as long as a drain, so that every change interrupts some. Each is compared byte by byte."""
    while not over.is_set():
        await through.exchange(port, int(size.drain * _RATE), rate=_RATE)
