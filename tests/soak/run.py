"""All activities of agents and a relay, at a low rate and for a long time: make soak [MINUTES=10]

python -m tests.soak.run --minutes 60

Streams open and close, echo little or much, are reset by their users, or stay; sessions are cut and come back; opens
are refused; REST requests ask the relay. The run ends with status 1 if the memory of a process grows, if descriptors,
threads or streams are left, or if a byte differs. ``growth.py`` defines growth.
It takes under 15 % of one core, so that other work can run beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.idle import anonymous
from tests.chaos.users import unless_refused
from tests.faults.rig import Rig, rig
from tests.faults.transfer import transfers
from tests.net.harness import KIB, MIB, Network, Process, counts_at_rest, eventually
from tests.net.tcp import Tcp
from tests.soak.growth import Growth, Sample, growth

__all__ = ["FULL", "QUICK", "Load", "Report", "soak"]

#: Seconds without a byte that count as a stall.
_PATIENCE: Final = 60.0
#: The share of the time before memory is watched. Tombstones last 180 s, and it takes some 15 minutes until new
#: allocations fit the holes between long-lived ones.
_WARM: Final = 1 / 3
_AT_ONCE: Final = 20  # look-ups


@dataclass(frozen=True)
class Load:
    """The concurrent activities. Periods are seconds between two starts."""

    staying: int = 40  # streams that stay, and send 1 KiB in 10 s
    short: float = 0.2  # a connection that echoes 64 B
    bulk: float = 6.0  # one that moves 2 MiB in each direction
    abandoned: float = 3.0  # one whose user resets it
    refused: float = 2.0  # one to a service without a host
    look_up: float = 3.0
    cut: float = 20.0  # one of the two sessions
    samples: int = 400  # of each process over the whole time; one takes some milliseconds


FULL: Final = Load()
QUICK: Final = Load(staying=20, short=0.04, bulk=1.0, abandoned=0.3, refused=0.3, look_up=0.3, cut=1.0, samples=40)


@dataclass
class Report:
    """The results of a run."""

    load: Load
    seconds: float
    watched: float = 0.0  # seconds after the warm-up
    done: dict[str, int] = field(default_factory=dict)
    moved: int = 0
    sessions: int = 0  # sessions lost and restored
    growth: dict[str, Growth] = field(default_factory=dict)
    before: dict[str, tuple[int, int]] = field(default_factory=dict)  # descriptors and threads
    after: dict[str, tuple[int, int]] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)  # share of one core
    failures: list[str] = field(default_factory=list)

    def judge(self, times: float) -> None:
        """Note the failures; memory may grow by ``times`` the limit of ``growth.py``."""
        self.failures += [f"the {who} grows" for who, grown in self.growth.items() if grown.exceeds(times)]
        for who, (descriptors, threads) in self.after.items():
            if descriptors > self.before[who][0] or threads > self.before[who][1]:
                self.failures.append(f"the {who} has {descriptors} descriptors and {threads} threads left")

    def lines(self) -> Iterator[str]:
        loop = "asyncio" if os.environ.get("KDISPATCH_NO_UVLOOP") == "1" else "uvloop where it is installed"
        yield (
            f"soak, {loop}: {self.seconds / 60:.1f} minutes, the last {self.watched / 60:.1f} watched: "
            f"{'FAILED' if self.failures else 'nothing grows'}"
        )
        done = ", ".join(f"{count} {what}" for what, count in self.done.items())
        yield f"  {self.load.staying} streams stay; {done}; {self.moved / 1e6:.0f} MB compared"
        yield f"  {self.sessions} sessions were cut and came back"
        for who, grown in self.growth.items():
            yield f"  anonymous memory of the {who}: {grown}"
        yield "  descriptors, threads before and after: " + ", ".join(
            f"{who} {self.before[who]} {self.after[who]}" for who in self.before
        )
        parts = ", ".join(f"{who} {part:.1%}" for who, part in self.cpu.items())
        yield f"  of one core in all {sum(self.cpu.values()):.1%}: {parts}"
        for failure in self.failures:
            yield f"  FAILED: {failure}"


class _Soak:
    """One run on a rig; ``nobody`` is a client's process and port for a service without a host."""

    def __init__(self, on: Rig, nobody: tuple[Process, int], load: Load, seconds: float) -> None:
        self.report = Report(load, seconds)
        self._rig = on
        self._nobody = nobody[1]
        self._processes: dict[str, Process] = {"relay": on.relay.running, "refused client": nobody[0]}
        self._processes |= {f"{leg} agent": agent for leg, agent in on.agents.items()}
        self._samples: dict[str, list[Sample]] = {who: [] for who in self._processes}
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._cuts = 0

    @property
    def _now(self) -> float:
        return self._loop.time() - self._began

    async def run(self) -> Report:
        report, load, through = self.report, self.report.load, self._rig.through
        await self._once()
        self.report.before = await self._counts()
        processor, self._began = self._processor(), self._loop.time()
        port, rate = self._rig.port, 100.0
        async with asyncio.TaskGroup() as group:
            for _ in range(load.staying):
                group.create_task(through.exchange(port, int(report.seconds * rate), rate=rate))
            for what, period, use in (
                ("short", load.short, lambda: through.exchange(port, 64)),
                ("bulk", load.bulk, lambda: through.exchange(port, 2 * MIB)),
                ("abandoned", load.abandoned, lambda: through.abandon(port, 64 * KIB)),
                ("refused", load.refused, self._refused),
                ("look-ups", load.look_up, self._look_up),
                ("cuts", load.cut, self._cut),
            ):
                group.create_task(self._every(what, period, use))
            group.create_task(self._sample())
        report.cpu = {who: (now - processor[who]) / self._now for who, now in self._processor().items()}
        await self._afterwards()
        return report

    async def _once(self) -> None:
        """Do each activity once, so that everything lazily created exists before the first count."""
        # More at once than later, because each database connection that the relay keeps has a thread.
        await asyncio.gather(*(self._look_up() for _ in range(_AT_ONCE)))
        for use in (self._refused, self._cut, self._cut):
            await use()
            await eventually(lambda: self._rig.back, self._cuts, wait=_PATIENCE)
            await self._rig.through.exchange(self._rig.port, MIB)

    async def _every(self, what: str, period: float, use: Callable[[], Awaitable[object]]) -> None:
        count = 0
        while max(begin := (count + 1) * period, self._now) < self.report.seconds:
            await asyncio.sleep(max(0.0, begin - self._now))
            await unless_refused(self._rig, use())
            count += 1
        self.report.done[what] = count

    async def _refused(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            async with await Tcp.connect(self._nobody) as tcp:
                await tcp.send(b"Is anybody there?")
                heard = await tcp.receive()
                raise AssertionError(f"a connection to no host was not reset, but heard {heard!r}")

    async def _look_up(self) -> None:
        assert await self._streams() >= 0

    async def _streams(self) -> int:
        """Return how many streams the relay counts over all hosts."""
        async with self._rig.relay.rest() as rest:
            services = await rest.services()
            hosts = [await rest.hosts(service.service) for service in services]
            return sum(host.streams for some in hosts for host in some)

    async def _cut(self) -> None:
        self._rig.legs[("host", "client")[self._cuts % 2]].cut_now()
        self._cuts += 1

    async def _sample(self) -> None:
        samples = self.report.load.samples
        period = self.report.seconds / samples
        for number in range(samples):
            await asyncio.sleep(max(0.0, number * period - self._now))
            for who, process in self._processes.items():
                self._samples[who].append((self._now, anonymous(process.pid)))

    async def _afterwards(self) -> None:
        """Judge the memory, and check that the resources of streams and sessions are freed."""
        report = self.report
        await eventually(lambda: self._rig.lost - self._rig.back, 0, wait=_PATIENCE)
        async with asyncio.timeout(_PATIENCE):
            while await self._streams():  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.1)
        report.after = await self._counts()
        report.moved, report.sessions = self._rig.through.moved, self._rig.back
        warm = _WARM * report.seconds
        report.watched = report.seconds - warm
        for who, samples in self._samples.items():
            report.growth[who] = growth([sample for sample in samples if sample[0] >= warm])

    async def _counts(self) -> dict[str, tuple[int, int]]:
        return dict(zip(self._processes, await counts_at_rest(list(self._processes.values())), strict=True))

    def _processor(self) -> dict[str, float]:
        """CPU seconds of each process, including this one."""
        ticks = {}
        for who, pid in {**{who: one.pid for who, one in self._processes.items()}, "load": os.getpid()}.items():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks[who] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return ticks


@contextlib.asynccontextmanager
async def _without_host(folder: Path, on: Rig) -> AsyncIterator[tuple[Process, int]]:
    """Run a client agent whose host has ended."""
    network = Network(folder, on.relay.url, on.relay.token)
    try:
        service = await network.service()
        host, client = await asyncio.gather(network.host(service, on.through.port), network.connect(service))
        host.stop()
        await network.has_live_hosts(service, 0)
        yield client
    finally:
        network.stop()


async def soak(folder: Path, load: Load, seconds: float, times: float = 1.0) -> Report:
    """Run the soak, and judge the results."""
    async with transfers(1, _PATIENCE) as through, rig(folder, through) as on:
        async with _without_host(folder, on) as nobody:
            report = await _Soak(on, nobody, load, seconds).run()
        report.judge(times)
        if report.failures:
            print(on.logs(), flush=True)
        return report


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.run", description="A little of everything, for long.")
    parser.add_argument("--minutes", type=float, default=10.0)
    seconds = parser.parse_args().minutes * 60
    print(f"{seconds / 60:g} minutes from {time.strftime('%H:%M:%S')} on", flush=True)
    with tempfile.TemporaryDirectory(prefix="kdispatch-soak-") as folder:
        report = asyncio.run(soak(Path(folder), FULL, seconds))
    print("", *report.lines(), sep="\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
