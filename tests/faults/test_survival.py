"""A transfer in both directions at once over many streams arrives whole, whatever breaks between the agents."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import pytest
from _pytest.mark import ParameterSet

from tests.faults.faults import CutLeg, Fault, RestartRelay, Stop, fresh_cut, random_cut
from tests.faults.proxy import Into
from tests.faults.rig import Leg, Rig, rig
from tests.faults.transfer import Transfers, transfers
from tests.net.harness import KIB, eventually

pytestmark = pytest.mark.slow

_MB: Final = 1000 * 1000
_LEGS: Final[tuple[Leg, Leg]] = ("host", "client")
#: Seconds without a byte that are a stall: under the grace of 120 s, above what a fault of 60 s and the longest
#: waits for a new session (15 s of handshake, 15 s of back-off) make together.
_PATIENCE: Final = 100.0


@dataclass(frozen=True)
class _Load:
    """Streams, bytes each way over all of them, and how many bytes a second each may send; 0 is no limit."""

    streams: int
    size: int
    rate: float = 0.0


@dataclass(frozen=True)
class _Case:
    """``faults`` strike one after the other; ``runs`` times, each with a plan of its own."""

    load: _Load
    runs: int
    faults: Callable[[random.Random], list[Fault]]


def _kills(count: int, most: float) -> Callable[[random.Random], list[Fault]]:
    def faults(choice: random.Random) -> list[Fault]:
        return [RestartRelay(signal.SIGKILL, choice.uniform(0.1, most)) for _ in range(count)]

    return faults


def _cuts(leg: Leg, count: int, *, both: bool = False) -> Callable[[random.Random], list[Fault]]:
    """Cuts after 50 KB to 5 MB, also in heads; in the upgrade's HTTP; in the first bytes of a new session."""

    def faults(choice: random.Random) -> list[Fault]:
        intos: tuple[Into, ...] = get_args(Into)
        cuts = [random_cut(choice, intos[number % 3], 50_000, 5 * _MB) for number in range(count - 3)]
        cuts += [fresh_cut(choice, into) for into in intos]
        choice.shuffle(cuts)
        return [CutLeg(leg, cut, both) for cut in cuts]

    return faults


def _hole(seconds: float) -> Callable[[random.Random], list[Fault]]:
    def faults(choice: random.Random) -> list[Fault]:
        return [CutLeg(choice.choice(_LEGS), random_cut(choice, "bytes", 50_000, 5 * _MB, seconds))]

    return faults


def _stop(seconds: float) -> Callable[[random.Random], list[Fault]]:
    return lambda _: [Stop("relay", seconds)]


def _each_once(choice: random.Random) -> list[Fault]:
    """One of each kind, with waits that fit a test of a few seconds; every further loss would double the agents'."""
    return [
        Stop("relay", 0.3),
        CutLeg("host", random_cut(choice, "frame", 0, 50_000)),
        RestartRelay(signal.SIGKILL, 0.1),
    ]


_SMALL: Final = _Load(6, 3 * _MB, rate=250 * KIB)
#: The size of the acceptance point.
_FULL: Final = _Load(20, 500 * _MB)


def _cases() -> list[ParameterSet]:
    full = {
        "kill": _Case(_FULL, 1, _kills(20, 5.0)),
        "cut host": _Case(_FULL, 5, _cuts("host", 8)),
        "cut client": _Case(_FULL, 5, _cuts("client", 8)),
        "cut both": _Case(_FULL, 5, _cuts("client", 8, both=True)),
        "black hole": _Case(_FULL, 2, _hole(40)),
        "stopped relay": _Case(_FULL, 2, _stop(60)),
    }
    return [
        pytest.param(_Case(_SMALL, 1, _each_once), id="small"),
        *(pytest.param(case, id=name, marks=pytest.mark.accept) for name, case in full.items()),
    ]


@pytest.fixture
async def through() -> AsyncIterator[Transfers]:
    async with transfers(seed=5, patience=_PATIENCE) as running:
        yield running


@pytest.fixture
async def broken(tmp_path: Path, through: Transfers) -> AsyncIterator[Rig]:
    async with rig(tmp_path, through) as made:
        yield made


async def _strike(faults: list[Fault], choice: random.Random, through: Transfers, total: int, broken: Rig) -> None:
    """One after the other: each when a random part of all bytes has come, or when the agents are just coming back."""
    first = through.moved
    while not through.running or not all(exchange.begun for exchange in through.running.values()):  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    moments = sorted(choice.uniform(0.02, 0.8) for _ in faults)
    tunnels = 0  # before the newest fault
    for fault, moment in zip(faults, moments, strict=True):
        if choice.random() < 0.6:
            await through.reached(first + int(moment * total))
        else:
            while broken.tunnels == tunnels:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.002)
            await asyncio.sleep(choice.uniform(0, 0.05))
        tunnels = -1 if isinstance(fault, Stop) else broken.tunnels  # after a stop no agent has to come back
        print(f"  at {(through.moved - first) / total:.0%}: {fault}")
        await fault.strike(broken)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", _cases())
async def test_every_byte_arrives(case: _Case, broken: Rig, through: Transfers) -> None:
    """No fault between the agents changes, loses or repeats a byte, ends or resets a stream, or stops it for good."""
    load = case.load
    total = 2 * load.size
    for seed in range(case.runs):
        choice = random.Random(seed)
        faults = case.faults(choice)
        cuts = sum(isinstance(fault, CutLeg) for fault in faults)
        before, lost, strikes = through.moved, broken.lost, broken.strikes
        began, through.longest = time.monotonic(), 0.0
        async with asyncio.TaskGroup() as group:
            group.create_task(_strike(faults, choice, through, total, broken))
            size = load.size // load.streams
            await asyncio.wait(
                [group.create_task(through.exchange(broken.port, size, rate=load.rate)) for _ in range(load.streams)]
            )
            assert broken.strikes - strikes == cuts, "the transfer was over before the last cut"
            seconds = time.monotonic() - began
        assert through.moved - before == total
        lost = broken.lost - lost
        print(
            f"run {seed}: {total / 1e6:.0f} MB in {seconds:.0f} s, {len(faults)} faults,"
            f" {lost} sessions lost, longest pause {through.longest:.1f} s"
        )
        assert lost
    await eventually(lambda: broken.back, broken.lost)
