"""Look-ups of live hosts, as many as one core can answer, beside a bulk transfer through the same relay."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.net.harness import Network, Relay, sizes
from tests.net.tcp import Tcp, service, source

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_ROOT: Final = Path(__file__).parents[2]
_RATE: Final = 2_000.0  # a second
_P99: Final = 0.020  # seconds
_CONNECTIONS: Final = 16
_BLOCK: Final = bytes(1 << 18)


@dataclass(frozen=True)
class _Size:
    seconds: float
    rounds: int
    factor: int  # of the bounds


def _pin(pid: int, cores: set[int]) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), cores)


async def _look_ups(network: Network, token: str, name: str, seconds: float, cores: set[int]) -> dict[str, float]:
    given = network.folder / "token"
    given.touch(0o600)
    given.write_text(token)
    path = f"/api/v1/services/{name}/hosts"
    command = [sys.executable, "-m", "tests.net.look_ups", network.url, path, str(_CONNECTIONS), str(seconds)]
    process = network.program("load", *command, given=given)
    _pin(process.pid, cores)
    assert await process.ended(seconds + 30) == 0, process.err
    found: dict[str, Any] = json.loads(process.out)
    return found


async def _received(tcp: Tcp, seconds: float) -> float:
    """Bytes a second."""
    count, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        count += len(await tcp.receive())
    return count / (time.monotonic() - began)


@pytest.mark.parametrize("size", sizes(_Size(2.0, 1, 10), _Size(5.0, 3, 1)))
async def test_look_ups_beside_bulk(own_relay: Relay, network: Network, size: _Size) -> None:
    """2,000 a second on one core with a token and the audit, 99 of 100 within 20 ms; bulk keeps half its rate."""
    own_relay.stop()
    await own_relay.start("--limit-requests", "off")
    network.environment["PYTHONPATH"] = str(_ROOT)
    cores = sorted(os.sched_getaffinity(0))
    others = set(cores[1:]) or set(cores)
    _pin(own_relay.running.pid, {cores[0]})
    async with service(source(_BLOCK)) as local, AsyncExitStack() as stack:
        name = await network.service()
        for agent in [await network.host(name, local.port) for _ in range(3)]:
            _pin(agent.pid, others)
        client, port = await network.connect(name)
        _pin(client.pid, others)
        alone, bulk, beside, both = [], [], [], []
        for _ in range(size.rounds):
            alone.append(await _look_ups(network, own_relay.token, name, size.seconds, others))
            tcp = await stack.enter_async_context(await Tcp.connect(port))
            await _received(tcp, 1.0)
            bulk.append(await _received(tcp, size.seconds))
            loaded = asyncio.create_task(_look_ups(network, own_relay.token, name, size.seconds + 1, others))
            await _received(tcp, 0.5)
            beside.append(await _received(tcp, size.seconds))
            both.append(await loaded)
            tcp.close()
    rate, p99 = (statistics.median(found[what] for found in both) for what in ("rate", "p99"))
    kept = statistics.median(with_ / without for with_, without in zip(beside, bulk, strict=True))
    print(
        f"\nlook-ups alone: {statistics.median(found['rate'] for found in alone):,.0f} a second, 99 of 100 within "
        f"{1000 * statistics.median(found['p99'] for found in alone):.1f} ms"
        f"\nbeside bulk: {rate:,.0f} a second, 99 of 100 within {1000 * p99:.1f} ms"
        f"\nbulk alone: {statistics.median(bulk) / 1e6:,.0f} MB/s; beside look-ups: {kept:.2f} of it"
    )
    assert rate >= _RATE / size.factor
    assert p99 <= _P99 * size.factor
    assert kept >= 0.5 / size.factor
