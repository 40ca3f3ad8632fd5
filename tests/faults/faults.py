"""Faults between two agents: each strikes a rig and then ends."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, get_args

from tests.faults.proxy import Cut, Into, Way
from tests.faults.rig import Leg, Rig, Who
from tests.net.harness import Process

__all__ = ["CutLeg", "Fault", "RestartRelay", "Starve", "Stop", "fresh_cut", "random_cut"]


class Fault(Protocol):
    """One fault of a plan; its ``str`` describes it completely."""

    async def strike(self, rig: Rig) -> None:
        """Cause the fault; returns when the cause is over, while effects may last."""
        ...


@dataclass(frozen=True)
class RestartRelay:
    """A signal ends the relay, which starts again ``down`` seconds later."""

    number: signal.Signals
    down: float

    async def strike(self, rig: Rig) -> None:
        await rig.restart_relay(self.number, self.down)

    def __str__(self) -> str:
        return f"{self.number.name} to the relay, started again {self.down:.2f} s later"


@dataclass(frozen=True)
class Stop:
    """A process pauses: SIGSTOP, and SIGCONT ``seconds`` later."""

    who: Who
    seconds: float

    async def strike(self, rig: Rig) -> None:
        with _stopped(rig.process(self.who)):
            await asyncio.sleep(self.seconds)

    def __str__(self) -> str:
        return f"SIGSTOP of the {self.who} for {self.seconds:.2f} s"


@dataclass(frozen=True)
class Starve:
    """A process gets a fifth of its processor for a while, as on an overloaded machine."""

    who: Who
    seconds: float

    async def strike(self, rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.seconds
        while loop.time() < until:
            with _stopped(rig.process(self.who)):
                await asyncio.sleep(0.08)
            await asyncio.sleep(0.02)

    def __str__(self) -> str:
        return f"a CPU stall of the {self.who} for {self.seconds:.2f} s"


@contextmanager
def _stopped(process: Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@dataclass(frozen=True)
class CutLeg:
    """Cut a leg at an exact byte, or make it a black hole first; ``both`` also cuts the other leg at that moment."""

    leg: Leg
    cut: Cut
    both: bool = False
    wait: float = 60.0  # seconds; if the byte has not come by then, cut anyway

    async def strike(self, rig: Rig) -> None:
        struck = rig.legs[self.leg].add(self.cut)
        await asyncio.wait({struck}, timeout=self.wait)
        if not struck.done():
            struck.cancel()
            rig.legs[self.leg].cut_now()
        if self.both:
            rig.legs["client" if self.leg == "host" else "host"].cut_now()
        await asyncio.sleep(self.cut.eats)

    def __str__(self) -> str:
        return f"a cut of {'both legs' if self.both else f'the leg of the {self.leg}'}: {self.leg} {self.cut}"


def random_cut(choice: random.Random, into: Into, least: int, most: int, eats: float = 0.0) -> Cut:
    """Return a cut with a random direction, byte and place."""
    way: Way = choice.choice(get_args(Way))
    return Cut(way, choice.randint(least, most), into, choice.randrange(1 << 16), eats)


def fresh_cut(choice: random.Random, into: Into) -> Cut:
    """Return a cut in a new session's first bytes: the HTTP head, the first WebSocket head, or the frame header."""
    after = choice.randint(1, 120) if into == "bytes" else 0
    return dataclasses.replace(random_cut(choice, into, after, after), fresh=True)
