"""A seeded random mix of faults against real processes with real transfers: make chaos [MINUTES=10] [SEED=...]

python -m tests.chaos.run --minutes 10 --seed 7
python -m tests.chaos.run --minutes 10 --seed 7 --plan     # only print the plan

It ends with status 1 if a byte differs, is missing or came twice, if an open stream is reset or stalls, or if an
agent is not back at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.chaos.plan import BY_USERS, Strike, make_plan
from tests.chaos.report import Report, Window
from tests.chaos.users import unless_refused
from tests.faults.rig import Rig, rig
from tests.faults.transfer import transfers
from tests.net.harness import KIB, eventually

__all__ = ["Chaos", "chaos"]

_MB: Final = 1000 * 1000
#: Seconds without a byte that count as a stall: below the grace of 120 s, above the longest fault and the reconnect.
_PATIENCE: Final = 100.0
#: Seconds after a fault in which a connection may be refused: a relay needs 45 s to detect that a host is gone.
_EXCUSED: Final = 45.0
#: How long a connection waits for relay and host: the maximum.
_OPEN_WAIT: Final = 60
_STEADY: Final = 8  # long-lived streams, each with its own rate
_BULK: Final = 3  # users that transfer large amounts, with pauses
_REST: Final = 0.5  # seconds between two connections of a user
_BACK: Final = 60.0  # seconds for both agents to be back after the faults
_LOGS: Final = 20_000  # characters of each process's log in a failed run's output


class Chaos:
    """One run of a plan on a rig; ``say`` gets a line for each fault."""

    def __init__(self, on: Rig, plan: list[Strike], seed: int, seconds: float, say: Callable[[str], None]) -> None:
        self.report = Report(seed, seconds)
        self._rig = on
        self._plan = plan
        self._say = say
        self._began = asyncio.get_running_loop().time()

    async def run(self) -> Report:
        """Run faults and users until the time is over or something fails; returns the report."""
        report, through = self.report, self._rig.through
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._count_resumptions())
                work = [group.create_task(self._strike(strike)) for strike in self._plan]
                work += [group.create_task(self._steady(number)) for number in range(_STEADY)]
                work += [group.create_task(self._bulk(number)) for number in range(_BULK)]
                await asyncio.wait(work)
                watching.cancel()
            await self._afterwards()
        except* Exception as errors:  # noqa: BLE001 - whatever it is, the report says so
            report.failures += [f"{type(error).__name__}: {error}" for error in _leaves(errors)]
        report.failures += self._refused_without_reason()
        report.seconds = self._now
        report.moved, report.streams, report.longest = through.moved, through.finished, through.longest
        report.longest_at = through.longest_at - self._began
        report.refused = len(self._rig.refused)
        report.codes = dict(self._rig.codes.most_common())
        report.windows.sort(key=lambda window: window.begin)
        return report

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    async def _strike(self, strike: Strike) -> None:
        await asyncio.sleep(strike.at - self._now)
        begin = self._now
        self._say(f"{begin:7.1f} s  {strike.fault}")
        try:
            await strike.fault.strike(self._rig)
        finally:
            breaks = strike.kind not in BY_USERS
            self.report.windows.append(Window(strike.kind, str(strike.fault), begin, self._now, breaks))

    async def _steady(self, number: int) -> None:
        """Run one long stream after the other, up to a minute each."""
        choice = random.Random(f"{self.report.seed} steady {number}")
        while (left := self.report.seconds - self._now) > 1:
            rate = choice.randrange(20, 800) * KIB
            size = int(rate * min(choice.uniform(1, 60), left))
            await unless_refused(self._rig, self._rig.through.exchange(self._rig.port, size, rate=rate))
            await asyncio.sleep(_REST)

    async def _bulk(self, number: int) -> None:
        """Transfer large amounts, some without a rate limit."""
        choice = random.Random(f"{self.report.seed} bulk {number}")
        while (left := self.report.seconds - self._now) > 1:
            rate = choice.choice([0, 2 * _MB, 8 * _MB])
            up, down = (int(choice.uniform(0, min(5, left)) * (rate or 10 * _MB)) for _ in range(2))
            await unless_refused(self._rig, self._rig.through.exchange(self._rig.port, up, down, rate=rate))
            await asyncio.sleep(_REST)

    async def _count_resumptions(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            back = self._rig.back - self.report.sessions
            self.report.sessions += back
            self.report.resumptions += back * sum(exchange.begun for exchange in self._rig.through.running.values())

    async def _afterwards(self) -> None:
        """Check that both agents are back, carry a new connection at once, and end with status 0."""
        on = self._rig
        await eventually(lambda: on.lost - on.back, 0, wait=_BACK)
        self.report.sessions = on.back
        async with asyncio.timeout(10):
            await on.through.exchange(on.port, _MB)
        self.report.memory = {"relay": on.relay.running.usage.rss}
        for name, agent in on.agents.items():
            self.report.memory[name] = agent.usage.rss
            agent.send_signal(signal.SIGTERM)
            status = await agent.ended()  # not stop(), which blocks the loop of the proxies that the agent needs
            assert status == 0, f"the {name} agent ended with {status}"

    def _refused_without_reason(self) -> list[str]:
        """Connections that were reset before they were open although no fault was active."""
        broken = [window for window in self.report.windows if window.breaks]
        times = [(at - self._began, text) for at, text in self._rig.refused]
        return [
            f"refused at {at:.1f} s, with nothing broken: {text}"
            for at, text in times
            if not any(window.begin <= at <= window.end + _EXCUSED for window in broken)
        ]


def _leaves(errors: BaseExceptionGroup) -> list[BaseException]:
    """The single errors of a group, at any depth."""
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def chaos(folder: Path, plan: list[Strike], seed: int, seconds: float, say: Callable[[str], None]) -> Report:
    """Run a plan with its own processes; a failure prints their output."""
    async with transfers(seed, _PATIENCE) as through, rig(folder, through, "--open-wait", str(_OPEN_WAIT)) as on:
        report = await Chaos(on, plan, seed, seconds, say).run()
        if report.failures:
            say(on.logs(_LOGS))
        return report


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description="Random faults, real processes.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="the plan's; without it a random one, which is printed")
    parser.add_argument("--plan", action="store_true", help="print the plan and do nothing")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    seconds = arguments.minutes * 60
    plan = make_plan(seed, seconds)
    print(f"seed {seed}: {len(plan)} faults in {arguments.minutes:g} minutes", flush=True)
    if arguments.plan:
        print(*plan, sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="kdispatch-chaos-") as folder:
        report = asyncio.run(chaos(Path(folder), plan, seed, seconds, lambda text: print(text, flush=True)))
    print("", *report.lines(), sep="\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
