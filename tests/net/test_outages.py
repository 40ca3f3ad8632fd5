"""After an outage of the relay, both ends of running connections are back soon, and none ends within its grace."""

from __future__ import annotations

import asyncio
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.net.harness import Network, Process, Relay, eventually, sizes

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_ROOT: Final = Path(__file__).parents[2]
_SOON: Final = 3.0  # seconds, the median of 50 streams
_SETTLES: Final = 30.0  # seconds within which the last one is back, on a busy machine
_WORKED: Final = 1.5  # seconds of a session before the relay goes


@dataclass(frozen=True)
class _Outage:
    seconds: float
    streams: int
    stands: bool = False  # the relay is stopped instead of ended, so calls to it get no answer
    kept: float = 1.0  # at least this fraction of the streams goes on
    soon: float = _SOON


def _times(process: Process, what: str) -> dict[int, float]:
    """By stream, the time of this event's last occurrence."""
    lines = (line.split() for line in process.out.decode().splitlines())
    return {int(number): float(at) for happened, number, at in lines if happened == what}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "outage",
    [
        *sizes(_Outage(2.0, 8, soon=4.0), _Outage(5.0, 50)),
        *(
            pytest.param(outage, id=name, marks=pytest.mark.accept)
            for name, outage in {
                "30 s": _Outage(30.0, 50),
                "90 s": _Outage(90.0, 50),
                "just below the grace": _Outage(115.0, 50, kept=0.95),
                "stands still": _Outage(90.0, 50, stands=True),
            }.items()
        ),
    ],
)
async def test_an_outage(network: Network, own_relay: Relay, outage: _Outage) -> None:
    """Streams go on within 3 s in the median after a relay returns or continues, and are kept."""
    name = await network.service()
    network.environment["PYTHONPATH"] = str(_ROOT)
    command = [sys.executable, "-m", "tests.net.pairs", network.url, name, own_relay.token, str(outage.streams)]
    process = network.program("pairs", *command)
    await process.says("ready", 60)
    await asyncio.sleep(_WORKED)
    own_relay.running.send_signal(signal.SIGSTOP if outage.stands else signal.SIGKILL)
    away = time.monotonic()
    if not outage.stands:
        await own_relay.running.ended()
    # On a busy machine a relay takes time to start; the outage lasts until it listens.
    starting = 0.0 if outage.stands else 0.6
    await asyncio.sleep(outage.seconds - starting)
    if outage.stands:
        own_relay.running.send_signal(signal.SIGCONT)
    else:
        await own_relay.start()
    returned = time.monotonic()
    await eventually(
        lambda: len(_back(process, away)) + len(_times(process, "reset")) >= outage.streams,
        expected=True,
        wait=_SETTLES,
    )
    later = sorted(at - returned for at in _back(process, away).values())
    print(
        f"\naway for {returned - away:.1f} s: {len(later)} of {outage.streams} streams went on, "
        f"{statistics.median(later):.2f} s after the return (median), the last after {later[-1]:.2f} s"
    )
    assert len(later) >= outage.kept * outage.streams
    assert statistics.median(later) <= outage.soon


def _back(process: Process, away: float) -> dict[int, float]:
    return {number: at for number, at in _times(process, "echo").items() if at > away + 0.5}
