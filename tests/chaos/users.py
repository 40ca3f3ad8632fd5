"""What users do to a tunnel, as faults of a plan: they read slowly, come in crowds, and go away in the middle."""

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
    """A connection that is reset before a byte came through is noted: whether it may be is for the run to say."""
    try:
        await use
    except NotOpenedError as error:
        rig.refused.append((asyncio.get_running_loop().time(), str(error)))


@dataclass(frozen=True)
class SlowReader:
    """A user reads ``size`` bytes at ``rate`` a second, while the service would send them at once."""

    size: int
    rate: int

    async def strike(self, rig: Rig) -> None:
        await unless_refused(rig, rig.through.exchange(rig.port, 0, self.size, read_rate=self.rate))

    def __str__(self) -> str:
        return f"a reader of {self.size // KIB} KiB at {self.rate // KIB} KiB/s"


@dataclass(frozen=True)
class ShortConnections:
    """So many connections of a KiB each way, ten at a time."""

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
    """So many users reset their connection, after nothing to 300 KB of what comes back; ``seed`` says which."""

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
