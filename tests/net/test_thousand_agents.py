"""A fleet of agents comes back to its relay soon, and not all at once."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.net.harness import Network, Process, Relay, eventually, sizes

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_ROOT: Final = Path(__file__).parents[2]
_BACK: Final = 20.0  # seconds after the relay was killed
_RUSH: Final = 0.1  # seconds
_SHARE: Final = 0.1  # of the fleet in any such period
_COLUMN: Final = 0.5  # seconds in one line of the histogram


@dataclass(frozen=True)
class _Fleet:
    agents: int
    processes: int
    down: float  # seconds without a relay
    factor: int  # of the bounds


def _times(processes: list[Process], what: str, since: float) -> list[float]:
    """Seconds after ``since`` at which this event happened to any agent, in order."""
    lines = (line.split() for process in processes for line in process.out.decode().splitlines())
    return sorted(float(at) - since for happened, at in lines if happened == what and float(at) > since)


def _ready(processes: list[Process]) -> int:
    return sum(process.out.count(b"ready") for process in processes)


def _busiest(times: list[float]) -> int:
    """The number of events in the fullest :data:`_RUSH`, wherever it begins."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - _RUSH:
            first += 1
        most = max(most, last - first + 1)
    return most


def _histogram(name: str, times: list[float]) -> None:
    print(f"{name}: {len(times)}, at most {_busiest(times)} in {_RUSH * 1000:.0f} ms, the last after {times[-1]:.1f} s")
    for column in range(math.ceil(times[-1] / _COLUMN)):
        inside = [at for at in times if column * _COLUMN <= at < (column + 1) * _COLUMN]
        bar = "#" * round(100 * len(inside) / len(times))
        print(f"  {column * _COLUMN:5.1f} s {len(inside):5d} {_busiest(inside):4d} {bar}")


@pytest.mark.parametrize("fleet", sizes(_Fleet(24, 1, 0.0, 10), _Fleet(1000, 5, 3.0, 1)))
async def test_a_fleet_comes_back(network: Network, own_relay: Relay, fleet: _Fleet) -> None:
    """After a relay was killed and restarted, all agents are back soon, and at most a tenth in any 100 ms."""
    name = await network.service()
    command = [sys.executable, "-m", "tests.net.fleet", network.url, name, own_relay.token]
    network.environment["PYTHONPATH"] = str(_ROOT)
    each = fleet.agents // fleet.processes
    processes = [network.program("fleet", *command, str(each)) for _ in range(fleet.processes)]
    await eventually(lambda: _ready(processes), fleet.agents, 60)

    killed = time.monotonic()
    own_relay.stop(signal.SIGKILL)
    await asyncio.sleep(fleet.down)
    await own_relay.start()
    print(f"\n{fleet.agents} agents, the relay is killed, and there again after {time.monotonic() - killed:.1f} s")
    await eventually(lambda: _ready(processes), 2 * fleet.agents, _BACK * fleet.factor)
    await network.has_live_hosts(name, each // 2 * fleet.processes)
    for process in processes:
        process.stop(signal.SIGKILL)  # its output is complete
    back, tries = _times(processes, "ready", killed), _times(processes, "try", killed)
    _histogram("tries", tries)
    _histogram("agents that are back", back)
    assert back[-1] <= _BACK * fleet.factor
    assert _busiest(back) <= fleet.agents * _SHARE * fleet.factor
