"""Actions of users as faults of a plan: slow reads, many connections at once, and abandoned connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

from tests.faults.rig import Rig
from tests.faults.transfer import NotOpenedError
from tests.net.harness import KIB

__all__ = ["Abandoned", "ShortConnections", "SlowReader", "unless_refused"]

_AT_ONCE: Final = 10


async def unless_refused(rig: Rig, use: Awaitable[object]) -> None:
    """Note a connection that is reset before its first byte; the run decides whether that is a failure."""
    try:
        await use
    except NotOpenedError as error:
        rig.refused.append((asyncio.get_running_loop().time(), str(error)))


@dataclass(frozen=True)
class SlowReader:
    """A user reads ``size`` bytes at ``rate`` bytes per second, while the service sends without a limit."""

    size: int
    rate: int

    async def strike(self, rig: Rig) -> None:
        await unless_refused(rig, rig.through.exchange(rig.port, 0, self.size, read_rate=self.rate))

    def __str__(self) -> str:
        return f"a reader of {self.size // KIB} KiB at {self.rate // KIB} KiB/s"


@dataclass(frozen=True)
class ShortConnections:
    """``count`` connections with 1 KiB in each direction, ten at a time."""

    count: int

    async def strike(self, rig: Rig) -> None:
        left = iter(range(self.count))

        async def user() -> None:
            for _ in left:
                await unless_refused(rig, rig.through.exchange(rig.port, KIB))

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(user())

    def __str__(self) -> str:
        return f"{self.count} short connections"


@dataclass(frozen=True)
class Abandoned:
    """``count`` users reset their connection after 0 to 300 KB of the answer; ``seed`` chooses the amounts."""

    count: int
    seed: int

    async def strike(self, rig: Rig) -> None:
        choice = random.Random(self.seed)
        async with asyncio.TaskGroup() as group:
            for _ in range(self.count):
                after = choice.choice([0, choice.randrange(300_000)])
                group.create_task(unless_refused(rig, rig.through.abandon(rig.port, after)))

    def __str__(self) -> str:
        return f"{self.count} users reset their connection"
