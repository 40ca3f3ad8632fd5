"""Agents that take a new session every second lose nothing, and become little slower."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from bench import chains, load
from tests.faults.transfer import Transfers, transfers
from tests.net.harness import MIB, sizes
from tests.upgrade.load import Echoes
from tests.upgrade.site import site

pytestmark = [pytest.mark.slow, pytest.mark.unguarded, pytest.mark.timeout(400)]

_STREAMS: Final = 4  # of bulk
_RATE: Final = MIB // 2  # bytes a second of the transfer that is compared, each way
_PATIENCE: Final = 60.0


@dataclass(frozen=True)
class _Size:
    """Rounds, the seconds of each without and with rotation, and a factor by which the bounds are wider."""

    rounds: int
    seconds: float
    slack: float


@pytest.mark.parametrize("size", sizes(_Size(1, 0.6, slack=10), _Size(6, 10.0, slack=1)))
async def test_rotation_every_second(tmp_path: Path, size: _Size) -> None:
    """With a new session every second, bulk keeps 0.8 of its rate, and p99 of an echo beside it is below 3 times.

    Meanwhile the test compares a transfer through the same agents byte by byte, and no echoing stream is lost.
    """
    rotate = ("--rotate", "1")
    with chains.service(tmp_path / "service") as bench:
        async with (
            transfers(2, _PATIENCE) as through,
            site(tmp_path, [bench, bench, through.port], ["--verbose"], [(), rotate, rotate]) as here,
        ):
            plain, rotating, compared = here.ports
            over = asyncio.Event()
            steady = asyncio.create_task(_compared(through, compared, over))
            echoes = Echoes(rotating, 0.1)
            # The service of bench/ takes the first byte of a stream as its kind.
            async with echoes.running(4, first=b"e"):
                rounds = [await _round(number % 2 > 0, plain, rotating, bench, size) for number in range(size.rounds)]
            over.set()
            await steady
            rate = statistics.median(after["rate"] / before["rate"] for before, after in rounds)
            slower = statistics.median(after["p99"] / before["p99"] for before, after in rounds)
            sessions = here.relay.running.err.count("session began")
            told = (
                f"{sessions} sessions; bulk {statistics.median(b['rate'] for b, _ in rounds) / MIB:.0f} MiB/s, with "
                f"rotation {rate:.2f} of it; echo p99 {statistics.median(b['p99'] for b, _ in rounds) * 1e3:.1f} ms, "
                f"with rotation {slower:.2f} times"
            )
            print(told)
            assert echoes.lost == [], here.logs()
            assert sessions > 6 + 4 * size.rounds * size.seconds, told  # of four agents one a second at the least
            assert rate >= 0.8 / size.slack, told
            assert slower < 3.0 * size.slack, told


async def _round(
    backwards: bool, plain: int, rotating: int, service: int, size: _Size
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure without and with rotation, one after the other; returns both in this order."""
    ports = (rotating, plain) if backwards else (plain, rotating)
    first, second = [await _measured(port, service, size.seconds) for port in ports]
    return (second, first) if backwards else (first, second)


async def _measured(port: int, service: int, seconds: float) -> dict[str, float]:
    """The rate of bulk, and the p99 of an echo beside it."""
    bulk = partial(load.run, "bulk", ports=[port], kind="d", streams=_STREAMS, service=service, pids=[])
    rate, trips = await asyncio.gather(
        asyncio.to_thread(bulk, seconds=seconds, ramp=0.3),
        asyncio.to_thread(load.run, "trips", port=port, size=64, seconds=seconds),
    )
    return {"rate": rate["rate"], "p99": trips["p99"]}


async def _compared(through: Transfers, port: int, over: asyncio.Event) -> None:
    while not over.is_set():
        await through.exchange(port, 2 * _RATE, rate=_RATE)
