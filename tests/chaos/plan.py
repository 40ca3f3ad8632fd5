"""A seed's plan: which fault strikes when. The same seed and length give the same plan."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, get_args

from tests.chaos.users import Abandoned, ShortConnections, SlowReader
from tests.faults.faults import CutLeg, Fault, RestartRelay, Starve, Stop, fresh_cut, random_cut
from tests.faults.proxy import Into
from tests.faults.rig import Leg, Who
from tests.net.harness import KIB

__all__ = ["BY_USERS", "KINDS", "Strike", "make_plan"]

_MB: Final = 1000 * 1000
#: Seconds of the longest stop or hole: above the agents' 30 s of silence; with the reconnect below the grace of 120.
_LONGEST: Final = 40.0
_LONG: Final = 8.0  # longer faults strike alone, because two of them could outlast the grace
_REST: Final = 20.0  # seconds after a long fault, to recover
_AFTER: Final = (5 * _MB, 500_000)  # largest number of bytes before a cut
_FIRST: Final = 0.5  # seconds before the first fault, to open streams


@dataclass(frozen=True)
class Strike:
    """One entry: the fault, the name of its kind, and the time of the strike in seconds from the start."""

    at: float
    kind: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.fault}"


def _span(choice: random.Random, longest: float) -> float:
    """Return a duration in seconds: mostly short, sometimes long."""
    least, most = choice.choice([(0.1, 2.0), (0.1, 2.0), (2.0, 10.0), (10.0, _LONGEST)])
    return min(choice.uniform(least, most), longest)


def _restart(number: signal.Signals) -> Callable[[random.Random, float], tuple[Fault, float]]:
    def make(choice: random.Random, longest: float) -> tuple[Fault, float]:
        down = min(choice.uniform(0.1, 5.0), longest)
        return RestartRelay(number, down), down + 1

    return make


def _stop(who: Who) -> Callable[[random.Random, float], tuple[Fault, float]]:
    def make(choice: random.Random, longest: float) -> tuple[Fault, float]:
        seconds = _span(choice, longest)
        return Stop(who, seconds), seconds

    return make


def _starve(choice: random.Random, longest: float) -> tuple[Fault, float]:
    seconds = min(choice.uniform(0.5, 4.0), longest)
    return Starve(choice.choice(get_args(Who)), seconds), seconds


def _cut(choice: random.Random, longest: float) -> tuple[Fault, float]:
    leg: Leg = choice.choice(get_args(Leg))
    into: Into = choice.choice(get_args(Into))
    cut = fresh_cut(choice, into) if choice.random() < 0.25 else random_cut(choice, into, 1, choice.choice(_AFTER))
    return CutLeg(leg, cut, both=choice.random() < 0.3, wait=20.0), 0.5


def _hole(choice: random.Random, longest: float) -> tuple[Fault, float]:
    leg: Leg = choice.choice(get_args(Leg))
    seconds = _span(choice, longest)
    return CutLeg(leg, random_cut(choice, "bytes", 1, _MB, seconds), wait=20.0), seconds


def _slow_reader(choice: random.Random, longest: float) -> tuple[Fault, float]:
    rate = choice.randrange(20, 400) * KIB
    return SlowReader(int(rate * min(choice.uniform(2, 20), longest)), rate), 0.2


def _short(choice: random.Random, _longest: float) -> tuple[Fault, float]:
    return ShortConnections(choice.randrange(20, 300)), 0.2


def _abandoned(choice: random.Random, _longest: float) -> tuple[Fault, float]:
    return Abandoned(choice.randrange(5, 30), choice.randrange(1 << 16)), 0.2


#: Each kind's frequency, and its function: it returns a fault and the seconds that no long fault may overlap.
KINDS: Final[dict[str, tuple[float, Callable[[random.Random, float], tuple[Fault, float]]]]] = {
    "kill -9 of the relay": (3, _restart(signal.SIGKILL)),
    "SIGTERM of the relay": (2, _restart(signal.SIGTERM)),
    "SIGSTOP of the relay": (1.5, _stop("relay")),
    "SIGSTOP of the host agent": (1.5, _stop("host")),
    "SIGSTOP of the client agent": (1.5, _stop("client")),
    "CPU stall": (1, _starve),
    "cut of a leg": (6, _cut),
    "black hole": (1.5, _hole),
    # Actions of users, which break nothing:
    "slow reader": (1.5, _slow_reader),
    "short connections": (2, _short),
    "abandoned connections": (2, _abandoned),
}

BY_USERS: Final = frozenset({"slow reader", "short connections", "abandoned connections"})


def make_plan(seed: int, seconds: float) -> list[Strike]:
    """Return all strikes of a run, in order; a quarter of them start before the previous one is over."""
    choice = random.Random(seed)
    longest = seconds / 6  # a short run has no long faults
    kinds = [kind for kind, (share, _) in KINDS.items() for _ in range(int(share * 2))]
    at, plan, alone_until = _FIRST, list[Strike](), 0.0
    while True:
        kind = choice.choice(kinds)
        fault, lasts = KINDS[kind][1](choice, longest)
        at = max(at, alone_until)
        if lasts > _LONG:
            at = max(at, _over(plan))
            alone_until = at + lasts + _REST
        if at + lasts > seconds:
            return plan
        plan.append(Strike(at, kind, fault))
        overlaps = choice.random() < 0.25
        at += choice.uniform(0, lasts) if overlaps else lasts + min(choice.expovariate(1 / 3), longest)


def _over(plan: list[Strike]) -> float:
    """The earliest time of a long fault: ``_LONG`` seconds after the newest strike."""
    return plan[-1].at + _LONG if plan else 0.0
