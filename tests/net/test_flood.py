"""Sessions that flood a relay with frames without effect are cut, and other sessions notice nothing."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.net.echo_pair import EchoPair, percentile
from tests.net.flood import KINDS
from tests.net.harness import Network, Process, Relay, needs
from tests.net.test_tls import restart_with_tls

_SESSIONS: Final = 10


async def _flooding(folder: Path, relay: Relay, kind: str, seconds: float, *options: str) -> Process:
    port = str(relay.address.port)
    command = [sys.executable, "-m", "tests.net.flood", port, kind, "--seconds", str(seconds), *options]
    process = Process(f"flood-{kind.replace(' ', '-')}", command, folder)
    await process.says("flooding")
    return process


async def _told(process: Process) -> list[dict[str, Any]]:
    assert await process.ended(60) == 0, process.text
    found: list[dict[str, Any]] = json.loads(process.out.splitlines()[-1])
    return found


@pytest.fixture
async def pair(own_relay: Relay, network: Network) -> EchoPair:
    service = await network.service()
    token = network.environment["KDISPATCH_TOKEN"]
    return await asyncio.to_thread(EchoPair, own_relay.address.port, service, token)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_a_flood_is_cut(tmp_path: Path, own_relay: Relay, pair: EchoPair, kind: str) -> None:
    """Ten sessions of one source that send one kind of frame without effect are cut, each with the reason."""
    flood = await _flooding(tmp_path, own_relay, kind, 30)
    told = asyncio.create_task(_told(flood))
    times: list[float] = []
    while not told.done():
        times += await asyncio.to_thread(pair.measure, 0.2)
    assert [one["code"] for one in await told] == ["rate_limited"] * _SESSIONS
    print(f"{kind}: p99 {percentile(times, 0.99) * 1000:.1f} ms, the last cut after {len(times)} echos")
    assert percentile(times, 0.5) < 0.25, "the relay was deaf"
    pair.close()


@pytest.mark.slow
@needs("openssl")
@pytest.mark.parametrize("kind", ["ping", "single pings", "websocket ping"])
async def test_a_flood_over_tls(tmp_path: Path, own_relay: Relay, network: Network, kind: str) -> None:
    """Floods are cut over TLS as well, where decrypted data arrives in other pieces."""
    service = await network.service()
    await restart_with_tls(own_relay, network)
    token = network.environment["KDISPATCH_TOKEN"]
    pair = await asyncio.to_thread(functools.partial(EchoPair, own_relay.address.port, service, token, tls=True))
    flood = await _flooding(tmp_path, own_relay, kind, 30, "--tls")
    told = asyncio.create_task(_told(flood))
    times: list[float] = []
    while not told.done():
        times += await asyncio.to_thread(pair.measure, 0.2)
    assert [one["code"] for one in await told] == ["rate_limited"] * _SESSIONS
    assert percentile(times, 0.5) < 0.25, "the relay was deaf"
    pair.close()


@pytest.mark.slow
async def test_a_flood_that_does_not_read(tmp_path: Path, own_relay: Relay, pair: EchoPair) -> None:
    """For a session that never reads the answers to its flood, the relay keeps at most what its budget allows."""
    before = own_relay.running.usage.anonymous
    flood = await _flooding(tmp_path, own_relay, "ping", 3, "--deaf")
    await asyncio.to_thread(pair.measure, 1)
    held = own_relay.running.usage.anonymous - before
    await _told(flood)
    assert held < 24 << 20  # 20,000 PONGs, some MB of socket buffers, and the overhead of a busy process
    pair.close()


@pytest.mark.accept
@pytest.mark.parametrize("kind", ["ping", "open", "websocket ping"])
async def test_nobody_hears_of_a_flood(tmp_path: Path, own_relay: Relay, pair: EchoPair, kind: str) -> None:
    """While ten sessions of one source flood at 10 MB/s each, the p99 of an honest echo at most triples."""
    await asyncio.to_thread(pair.measure, 1)
    alone = await asyncio.to_thread(pair.measure, 20)
    flood = await _flooding(tmp_path, own_relay, kind, 60)
    beside = await asyncio.to_thread(pair.measure, 60)
    told = await _told(flood)
    before, after = percentile(alone, 0.99), percentile(beside, 0.99)
    print(f"{kind}: p99 {before * 1000:.2f} ms alone, {after * 1000:.2f} ms beside the flood")
    assert [one["code"] for one in told] == ["rate_limited"] * _SESSIONS
    assert after <= 3 * before
    pair.close()
