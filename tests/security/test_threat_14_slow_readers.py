"""Threat 14: slow readers."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from tests.net.harness import KIB, MIB, Network, Relay, sizes
from tests.net.tcp import Tcp, service
from tests.security.site import Agent, Caller, answer, carried, made, offers, site

_BLOCK: Final = bytes(64 * KIB)


async def test_credit_is_enforced(folder: Path) -> None:
    """A host that exceeds its reader's credit gets that stream reset, its excess is dropped, and others go on."""
    async with (
        site(folder) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
    ):
        admin = await caller.admin()
        await made(caller, "/services", admin, name="web", access="public")
        assert await offers(host, 1, "ann/web", admin) == "OFFERED"
        greedy = await carried(client, host, 1, "ann/web")
        fair = await carried(client, host, 3, "ann/web")
        for at in range(0, 1 << 19, 1 << 15):  # twice the limit in OPEN
            host.send(frame(frames.DATA, greedy, at, bytes(1 << 15)))
        assert await answer(host, greedy) == "credit_exceeded"
        host.send(frame(frames.DATA, fair, 0, b"fair"))
        seen: list[bytes] = []
        while not seen or seen[-1] != b"fair":
            _, _, _, _, payload = await client.next(frames.DATA)
            seen.append(bytes(payload))
        assert sum(map(len, seen)) <= (1 << 18) + 4
        assert relay.relay.gate.state().sessions == 2


async def test_who_never_reads_is_cut(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An agent that sends requests and never reads is cut when too many answers are pending for it."""
    many = 1e9  # off, because the limit on idle frames would end the session sooner
    limits = Limits(control=20_000, idle_rate=many, idle_burst=many)
    async with site(folder, limits) as relay, Agent.of(relay) as agent:
        agent._writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport
        loop = asyncio.get_running_loop()
        until = loop.time() + 3
        while relay.relay.gate.state().sessions and loop.time() < until:
            agent.send(frame(frames.PING) * 1000)
            await asyncio.sleep(0.002)
        assert not relay.relay.gate.state().sessions, "it is still there"
        while "slow_consumer" not in caplog.text and loop.time() < until:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        assert "slow_consumer" in caplog.text


@dataclass(frozen=True)
class _Size:
    measured: int
    offered: int
    stuck: float
    rounds: int
    ratio: float


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", sizes(_Size(8 * MIB, 1000 * MIB, 0.3, 1, 0.01), _Size(128 * MIB, 1000 * MIB, 1.0, 3, 0.8))
)
async def test_a_stalled_reader(network: Network, own_relay: Relay, size: _Size) -> None:
    """A stalled reader with 1 GB offered to it neither makes the relay grow nor slows down its sibling."""

    async def serve(tcp: Tcp) -> None:
        await tcp.receive_exactly(1)
        await tcp.send_forever(_BLOCK, size.offered)

    async def rate(port: int) -> float:
        async with await Tcp.connect(port) as tcp:
            await tcp.send(b"x")
            began = time.monotonic()
            await tcp.receive_exactly(size.measured)
            return size.measured / (time.monotonic() - began)

    name = await network.service()
    async with service(serve) as local:
        await network.host(name, local.port)
        _, port = await network.connect(name)
        await rate(port)
        alone, beside, grown = [], [], []
        for _ in range(size.rounds):
            alone.append(await rate(port))
            before = own_relay.running.usage.rss
            async with await Tcp.connect(port) as stalled:
                await stalled.send(b"x")
                await asyncio.sleep(size.stuck)
                beside.append(await rate(port))
                grown.append(own_relay.running.usage.rss - before)
                stalled.reset()
    ratio = statistics.median(beside) / statistics.median(alone)
    print(f"the sibling's rate is {ratio:.2f} of that alone; the relay grew by {max(grown) / MIB:.1f} MiB")
    assert ratio >= size.ratio
    assert max(grown) < 32 * MIB
