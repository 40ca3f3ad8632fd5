"""Beside many downloads over a slow leg, the relay's queue stays short, and an echo stays quick."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pytest

from bench.delay_line import delay_line
from kdispatch.relay_url import RelayUrl
from tests.net.harness import KIB, MIB, sizes
from tests.net.loop_stack import Stack, running_stack
from tests.net.tcp import Tcp, echo, service

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_BLOCK: Final = bytes(64 * KIB)
_WORD: Final = bytes(64)


@dataclass(frozen=True)
class _Size:
    """The leg's bytes a second, the number of downloads, seconds until they are steady, and seconds of measuring."""

    rate: float
    streams: int
    settle: float
    seconds: float
    slack: float  # a factor by which the bounds are wider


_SIZES: Final = sizes(
    _Size(5e6, 8, settle=0.8, seconds=0.7, slack=10), _Size(1.25e6, 20, settle=10.0, seconds=40.0, slack=1)
)


async def _serve(tcp: Tcp) -> None:
    if await tcp.receive_exactly(1) == b"d":
        await tcp.send_forever(_BLOCK)
    await echo(tcp)


async def _download(port: int, counts: list[int]) -> None:
    counts.append(0)
    place = len(counts) - 1
    async with await Tcp.connect(port) as tcp:
        await tcp.send(b"d")
        async for chunk in tcp.chunks():
            counts[place] += len(chunk)


async def _words(port: int, seconds: float) -> list[float]:
    """The seconds of each 64 B echo, one after the other, sorted."""
    took: list[float] = []
    async with await Tcp.connect(port) as tcp:
        await tcp.send(b"e")
        end = time.monotonic() + seconds
        while not took or time.monotonic() < end:
            began = time.monotonic()
            await tcp.send(_WORD)
            await tcp.receive_exactly(len(_WORD))
            took.append(time.monotonic() - began)
    return sorted(took)


async def _longest(stack: Stack) -> int:
    """Watch until cancelled; returns the most bytes that waited at the relay for one agent."""
    most = 0
    try:
        while True:
            most = max(most, *(session.queued for session in stack.switch.by_process.values()))
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        return most


@asynccontextmanager
async def _slow(folder: Path, leg: Literal["client", "host"], rate: float) -> AsyncIterator[tuple[Stack, int]]:
    """A stack with one slow leg, and the client's port."""
    async with AsyncExitStack() as ending:
        programs = await ending.enter_async_context(service(_serve))
        stack = await ending.enter_async_context(running_stack(folder))
        relay = RelayUrl.parse(stack.url).port
        line = await ending.enter_async_context(delay_line(relay, 0.0, rate))
        url = f"http://127.0.0.1:{line.port}"
        await stack.host(programs.port, url=url if leg == "host" else "")
        _, port = await stack.client(url=url if leg == "client" else "")
        yield stack, port


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("leg", ["client", "host"])
async def test_a_slow_leg(tmp_path: Path, leg: Literal["client", "host"], size: _Size) -> None:
    """When downloads fill a slow leg, the relay queues less than 2 MiB, and the p99 of a 64 B echo is below 400 ms."""
    counts: list[int] = []
    async with _slow(tmp_path, leg, size.rate) as (stack, port):
        downloads = [asyncio.create_task(_download(port, counts)) for _ in range(size.streams)]
        await asyncio.sleep(size.settle)
        before = sum(counts)
        watching = asyncio.create_task(_longest(stack))
        took = await _words(port, size.seconds)
        watching.cancel()
        queued, share = await watching, (sum(counts) - before) / size.seconds / size.rate
        for download in downloads:
            download.cancel()
        await asyncio.gather(*downloads, return_exceptions=True)
    p99 = took[len(took) * 99 // 100]
    print(
        f"\n{leg}: {share:.2f} of the leg, {queued // KIB} KiB at the relay, "
        f"echo p50 {statistics.median(took) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms of {len(took)}"
    )
    assert queued < 2 * MIB * size.slack
    assert p99 < 0.4 * size.slack
    assert share > 0.9 / size.slack
