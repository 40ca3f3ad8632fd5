"""Transfers in both directions over many streams arrive complete, whatever fault strikes between the agents."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import pytest
from _pytest.mark import ParameterSet

from tests.faults.faults import CutLeg, Fault, RestartRelay, Stop, fresh_cut, random_cut
from tests.faults.proxy import Into
from tests.faults.rig import Leg, Rig, rig
from tests.faults.transfer import transfers
from tests.net.harness import KIB, eventually

pytestmark = pytest.mark.slow

_MB: Final = 1000 * 1000
_LEGS: Final[tuple[Leg, Leg]] = ("host", "client")
#: Seconds without a byte that count as a stall: below the grace of 120 s, above the sum of a fault of 60 s and the
#: longest waits for a new session (15 s of handshake, 15 s of back-off).
_PATIENCE: Final = 100.0


@dataclass(frozen=True)
class _Load:
    """Streams, bytes per direction over all streams, and the rate of each in bytes per second; 0 is no limit."""

    streams: int
    size: int
    rate: float = 0.0


@dataclass(frozen=True)
class _Case:
    """``faults`` strike one after the other, in ``runs`` runs with separate plans."""

    load: _Load
    runs: int
    faults: Callable[[random.Random], list[Fault]]


def _kills(count: int, most: float) -> Callable[[random.Random], list[Fault]]:
    def faults(choice: random.Random) -> list[Fault]:
        return [RestartRelay(signal.SIGKILL, choice.uniform(0.1, most)) for _ in range(count)]

    return faults


def _cuts(leg: Leg, count: int, *, both: bool = False) -> Callable[[random.Random], list[Fault]]:
    """Cuts after 50 KB to 5 MB, also in heads, and three in the first bytes of a new session."""

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
    """One of each kind, with few losses: each more doubles the agents' back-off, and the test must end in seconds."""
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


async def _strike(faults: list[Fault], choice: random.Random, broken: Rig, total: int) -> list[str]:
    """Strike one after the other: each when a random share of the bytes has arrived, or while agents reconnect."""
    through = broken.through
    while not through.running or not all(exchange.begun for exchange in through.running.values()):  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    moments = sorted(choice.uniform(0.02, 0.8) for _ in faults)
    tunnels, told = 0, []  # tunnels before the newest fault
    for fault, moment in zip(faults, moments, strict=True):
        if choice.random() < 0.6:
            await through.reached(int(moment * total))
        else:
            while broken.tunnels == tunnels:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.002)
            await asyncio.sleep(choice.uniform(0, 0.05))
        tunnels = -1 if isinstance(fault, Stop) else broken.tunnels  # a stop may cause no new session
        told.append(f"  at {through.moved / total:.0%}: {fault}")
        await fault.strike(broken)
    return told


async def _run(case: _Case, seed: int, folder: Path) -> None:
    """One run with its own processes; a failure includes their output."""
    folder.mkdir()  # noqa: ASYNC240 - once a run
    choice = random.Random(seed)
    faults = case.faults(choice)
    async with transfers(seed, patience=_PATIENCE) as through, rig(folder, through) as broken:
        try:
            print(f"run {seed}: " + await _moved_through(faults, choice, broken, case.load))
        except BaseException as error:
            error.add_note(broken.logs())
            raise


async def _moved_through(faults: list[Fault], choice: random.Random, broken: Rig, load: _Load) -> str:
    """Transfer everything while the faults strike, and check the result; returns a summary."""
    total, through, began = 2 * load.size, broken.through, time.monotonic()
    async with asyncio.TaskGroup() as group:
        striking = group.create_task(_strike(faults, choice, broken, total))
        size = load.size // load.streams
        await asyncio.wait(
            [group.create_task(through.exchange(broken.port, size, rate=load.rate)) for _ in range(load.streams)]
        )
        cuts = sum(isinstance(fault, CutLeg) for fault in faults)
        assert broken.strikes == cuts, "the transfer was over before the last cut"
    seconds = time.monotonic() - began
    assert through.moved == total
    assert broken.lost
    await eventually(lambda: broken.back, broken.lost)
    told = (
        f"{total / 1e6:.0f} MB in {seconds:.0f} s, {len(faults)} faults, {broken.lost} sessions lost,"
        f" longest pause {through.longest:.1f} s"
    )
    return "\n".join([told, *striking.result()])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", _cases())
async def test_every_byte_arrives(case: _Case, tmp_path: Path) -> None:
    """No fault between the agents changes, loses or repeats a byte, ends or resets a stream, or stops it for good."""
    # Runs mostly wait for agents that back off, so all runs of one kind run at once, each with its own relay.
    async with asyncio.TaskGroup() as group:
        for seed in range(case.runs):
            group.create_task(_run(case, seed, tmp_path / str(seed)))
