"""Agents with 64 descriptors as processes: they serve as many connections as they can, and keep running."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.net.harness import _KDISPATCH, Network, Process
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow

_FEW = 'ulimit -n 64; exec "$@"'
_TRIED = 60  # connections: too many for 64 descriptors


def _agent(network: Network, *arguments: str) -> Process:
    return network.program(arguments[0], "sh", "-c", _FEW, "sh", _KDISPATCH, "agent", *arguments, "--drain-time", "0")


async def _talks(tcp: Tcp) -> bool:
    with contextlib.suppress(OSError, EOFError, TimeoutError):
        async with asyncio.timeout(1.0):
            await tcp.send(b"hello")
            return await tcp.receive_exactly(5) == b"hello"
    return False


async def _goes_on(network: Network, name: str, port: int, agent: Process) -> None:
    """Most of many connections are served; the service stays listed; afterwards new ones are served."""
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(_TRIED):
            with contextlib.suppress(ConnectionResetError):  # one may be reset before its connect returns
                made.append(await stack.enter_async_context(await Tcp.connect(port)))
        served = await asyncio.gather(*map(_talks, made))
        assert 30 <= sum(served) < _TRIED
        await asyncio.sleep(3.0)  # the port is checked every two seconds
        assert await network.live_hosts(name) == 1
        assert agent.status is None
    async with asyncio.timeout(10):
        while True:  # until the other connections have ended completely
            with contextlib.suppress(ConnectionResetError):
                async with await Tcp.connect(port) as tcp:
                    if await _talks(tcp):
                        break


async def test_a_host(network: Network) -> None:
    """A host at the limit refuses further opens as busy, and withdraws nothing; --exit-when-closed does not end it."""
    name = await network.service()
    async with service(echo) as local:
        host = _agent(network, "host", name, "--port", str(local.port), "--exit-when-closed")
        await host.says("is offered as")
        _, port = await network.connect(name)
        await _goes_on(network, name, port, host)
        assert "Nothing listens" not in host.err
    assert host.err.count("The service stays offered") == 1 and "Too many open files" in host.err


async def test_a_client(network: Network) -> None:
    """A client at the limit lets further connections wait, reports it once, and neither spins nor fills its log."""
    name = await network.service()
    async with service(echo) as local:
        await network.host(name, local.port)
        client = _agent(network, "connect", name)
        port = int((await client.says(r"is reached by 127\.0\.0\.1:(\d+)"))[1])
        await _goes_on(network, name, port, client)
    assert client.err.count("wait: Too many open files") == 1 and client.err.count("are taken again") == 1
    assert len(client.err.splitlines()) < 10
