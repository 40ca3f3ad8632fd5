"""The cost of a start, and what an idle agent and relay hold."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.net.harness import MIB, Network, Relay, sizes
from tests.net.tcp import service as tcp_service
from tests.net.tcp import silent

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_KDISPATCH = str(Path(sys.executable).with_name("kdispatch"))
_WIDE = 10  # a machine that does other things may be this much slower, or hold this much more
_STARTS = 11
_REST = 3.0  # seconds after which a process is idle


@pytest.mark.parametrize("factor", sizes(_WIDE, 1))
def test_version_is_quick(factor: int) -> None:
    """``kdispatch --version`` takes less than 150 ms from exec to exit in the median."""
    times = []
    for _ in range(_STARTS):
        began = time.perf_counter()
        subprocess.run([_KDISPATCH, "--version"], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    median = statistics.median(times)
    print(f"kdispatch --version: {median * 1000:.0f} ms (median of {_STARTS})")
    assert median < 0.15 * factor


@pytest.mark.parametrize("factor", sizes(_WIDE, 1))
async def test_a_host_is_offered_soon(network: Network, factor: int) -> None:
    """A host agent is offered less than 600 ms after its exec in the median."""
    times = []
    async with tcp_service(silent) as silence:
        for _ in range(_STARTS if factor == 1 else 1):
            service = await network.service()
            began = time.perf_counter()
            host = await network.host(service, silence.port)
            times.append(time.perf_counter() - began)
            host.stop()
    median = statistics.median(times)
    print(f"agent host, exec to offered: {median * 1000:.0f} ms (median of {len(times)})")
    assert median < 0.6 * factor


@pytest.mark.parametrize("factor", sizes(_WIDE, 1))
async def test_idle_processes_are_small(own_relay: Relay, network: Network, factor: int) -> None:
    """Idle agents hold at most 45 MB each, an idle relay 80 MB."""
    service = await network.service()
    async with tcp_service(silent) as silence:
        host = await network.host(service, silence.port)
        connect, _ = await network.connect(service)
        await asyncio.sleep(_REST if factor == 1 else 0.5)
        for name, process, limit in (("host", host, 45), ("connect", connect, 45), ("relay", own_relay.running, 80)):
            rss = process.usage.rss / MIB
            print(f"idle {name}: {rss:.1f} MiB resident")
            assert rss <= limit * factor
