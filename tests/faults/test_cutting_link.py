"""Through a link that cuts each connection after a few megabytes, agents reconnect at once as long as bytes move."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.faults.proxy import Cut, FaultProxy, Way
from tests.faults.rig import rig
from tests.faults.transfer import transfers
from tests.net.harness import sizes

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_MB: Final = 1000 * 1000
_WAYS: Final[tuple[Way, Way]] = ("up", "down")


@dataclass(frozen=True)
class _Size:
    """Bytes per stream and direction, the range of bytes until a cut, and the time limit in seconds."""

    each: int
    least: int
    most: int
    seconds: float
    streams: int = 8


async def _cut_for_ever(link: FaultProxy, choice: random.Random, size: _Size) -> None:
    while True:
        await link.add(Cut(choice.choice(_WAYS), choice.randrange(size.least, size.most)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", sizes(_Size(_MB, 100_000, 500_000, 30.0), _Size(16 * _MB, _MB // 2, 5 * _MB, 100.0)))
async def test_a_link_that_cuts_what_has_carried_much(size: _Size, tmp_path: Path) -> None:
    """Many streams finish in time over a link that cuts every connection of both agents, without back-off."""
    choice = random.Random(3)
    async with transfers(3, patience=60) as through, rig(tmp_path, through) as broken:
        cutting = [asyncio.create_task(_cut_for_ever(link, choice, size)) for link in broken.legs.values()]
        began = time.monotonic()
        try:
            await asyncio.gather(*(through.exchange(broken.port, size.each) for _ in range(size.streams)))
        except BaseException as error:
            error.add_note(broken.logs())
            raise
        finally:
            for task in cutting:
                task.cancel()
            await asyncio.gather(*cutting, return_exceptions=True)
        seconds = time.monotonic() - began
        moved = through.moved / 1e6
        print(f"\n{moved:.0f} MB in {seconds:.1f} s, {broken.strikes} cuts, longest pause {through.longest:.1f} s")
        assert through.moved == 2 * size.streams * size.each
        assert broken.strikes >= 10
        assert seconds <= size.seconds
