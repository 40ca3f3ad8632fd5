"""Transfers that one program aborts: the other one gets a reset, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kdispatch_protocol.limits import DEFAULT_LIMITS
from tests.net.harness import KIB, MIB, Network, Relay, counts, counts_at_rest, eventually, sizes
from tests.net.loop_stack import running_stack
from tests.net.tcp import Service, Tcp, echo, service

pytestmark = pytest.mark.slow

_BLOCK: Final = bytes(64 * KIB)
_GREETING: Final = b"!"
_SOME: Final = 200 * KIB  # bytes before a program gives up: more than early data, so the stream was open
_LEAK: Final = 6 * MIB  # of RssAnon over one series of aborts; a leaked stream keeps its window of 256 KiB

Act = Callable[[Tcp], Awaitable[None]]


async def _fate(tcp: Tcp, *, sends: bool) -> str:
    """Read, and send if requested, until the connection ends: by ``reset`` or by a clean ``end``."""
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(tcp.digest())]
    if sends:
        tasks.append(asyncio.create_task(tcp.send_forever(_BLOCK)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return "reset" if any(isinstance(task.exception(), ConnectionError) for task in done) else "end"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _give_up_reading(tcp: Tcp) -> None:
    await tcp.receive_exactly(_SOME)
    tcp.reset()


async def _give_up_sending(tcp: Tcp) -> None:
    await tcp.send_forever(_BLOCK, _SOME)
    tcp.reset()


class _Series:
    """Repeated aborts: which side gives up, how, and the outcome at the other side."""

    def __init__(self, *, by_client: bool, download: bool) -> None:
        self.fates: list[str] = []
        gives_up = _give_up_reading if by_client == download else _give_up_sending
        hears = self._hears_sending if by_client == download else self._hears_reading
        self._client, self._serve = (gives_up, hears) if by_client else (hears, gives_up)

    async def serve(self, tcp: Tcp) -> None:
        # An abort before both ends know of the stream would never reach the other end.
        await tcp.send(_GREETING)
        try:
            await tcp.receive_exactly(1)
        except ConnectionError:  # the reset overtook it
            self.fates.append("reset")
        else:
            await self._serve(tcp)

    async def _hears_sending(self, tcp: Tcp) -> None:
        self.fates.append(await _fate(tcp, sends=True))

    async def _hears_reading(self, tcp: Tcp) -> None:
        self.fates.append(await _fate(tcp, sends=False))

    async def run(self, port: int, running: Service, times: int) -> None:
        for _ in range(times):
            async with asyncio.timeout(20), await Tcp.connect(port) as tcp:
                assert await tcp.receive_exactly(1) == _GREETING
                await tcp.send(_GREETING)
                await self._client(tcp)
        await eventually(lambda: running.open, 0)


_WHO = pytest.mark.parametrize("by_client", [True, False], ids=["client", "service"])
_WAY = pytest.mark.parametrize("download", [True, False], ids=["download", "upload"])


@_WHO
@_WAY
@pytest.mark.parametrize("times", sizes(60, 500))
async def test_processes_forget_aborted_transfers(
    network: Network, own_relay: Relay, *, by_client: bool, download: bool, times: int
) -> None:
    """After any number of aborts, the other program was reset each time, and memory and descriptors are as before."""
    series = _Series(by_client=by_client, download=download)
    name = await network.service()
    async with service(series.serve) as running:
        host = await network.host(name, running.port)
        client, port = await network.connect(name)
        processes = [own_relay.running, host, client]
        await series.run(port, running, 40)
        before = await counts_at_rest(processes)
        memory = [process.usage.anonymous for process in processes]
        await series.run(port, running, times)
        await eventually(lambda: [opened for opened, _ in counts(processes)], [opened for opened, _ in before])
        # A loop's pool may start another thread for a look-up, and keeps it.
        assert all(now <= then + 1 for (_, now), (_, then) in zip(counts(processes), before, strict=True))
        growth = [process.usage.anonymous - start for process, start in zip(processes, memory, strict=True)]
        print("growth of relay, host, client, KiB:", [size // KIB for size in growth])
        assert max(growth) < _LEAK
        assert series.fates == ["reset"] * (40 + times)


@_WHO
@_WAY
async def test_tables_forget_aborted_transfers(tmp_path: Path, *, by_client: bool, download: bool) -> None:
    """Aborted streams leave nothing in any table."""
    series = _Series(by_client=by_client, download=download)
    async with service(series.serve) as running, running_stack(tmp_path) as stack:
        await stack.host(running.port)
        _, port = await stack.client()
        await series.run(port, running, 1)
        await eventually(lambda: any(stack.held().values()), expected=False)
        await asyncio.sleep(0.1)
        tasks = len(asyncio.all_tasks())
        await series.run(port, running, 30)
        await eventually(lambda: any(stack.held().values()), expected=False)
        await eventually(lambda: len(asyncio.all_tasks()), tasks)
        assert series.fates == ["reset"] * 31


async def _send_until_stuck(tcp: Tcp) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await tcp.send_forever(_BLOCK)


@_WHO
async def test_abort_is_noticed_though_nobody_reads(tmp_path: Path, *, by_client: bool) -> None:
    """A sender that resets while the other side has stopped reading frees its stream within the time for last data."""
    aborted = asyncio.Event()
    fates: list[str] = []

    async def abort_stuck(tcp: Tcp) -> None:
        await _send_until_stuck(tcp)
        tcp.reset()
        aborted.set()

    async def read_afterwards(tcp: Tcp) -> None:
        await aborted.wait()
        await asyncio.sleep(5)
        fates.append(await _fate(tcp, sends=False))

    client, serve = (abort_stuck, read_afterwards) if by_client else (read_afterwards, abort_stuck)
    limits = replace(DEFAULT_LIMITS, last_words=1.0)
    async with service(serve) as running, running_stack(tmp_path, limits) as stack:
        await stack.host(running.port)
        _, port = await stack.client()
        async with await Tcp.connect(port) as tcp:
            talking = asyncio.ensure_future(client(tcp))
            await aborted.wait()
            await eventually(lambda: stack.held()["streams"], 0, wait=4)
            await asyncio.wait_for(talking, 10)
        await eventually(lambda: fates, ["reset"])


async def test_end_behind_an_abort_costs_only_its_stream(tmp_path: Path) -> None:
    """The service's end for a program that has already reset does not harm the session's other streams."""
    aborted = asyncio.Event()

    async def serve(tcp: Tcp) -> None:
        if await tcp.receive_exactly(1) == b"e":
            await echo(tcp)
        await aborted.wait()
        with contextlib.suppress(OSError):  # the agents may have seen the reset in time, and passed it on
            tcp.finish()
        await asyncio.sleep(0.5)

    async with service(serve) as running, running_stack(tmp_path) as stack:
        await stack.host(running.port)
        _, port = await stack.client()
        async with await Tcp.connect(port) as bystander, await Tcp.connect(port) as tcp:
            await bystander.send(b"echo")
            assert await bystander.receive_exactly(3) == b"cho"
            await tcp.send(b"s")
            await _send_until_stuck(tcp)  # the agent does not read, and cannot see the reset
            tcp.reset()
            aborted.set()
            await asyncio.sleep(0.3)
            await bystander.send(b"still there")
            assert await bystander.receive_exactly(11) == b"still there"
