"""Which host a new connection gets, and what users and programs are told without one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import re
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from kdispatch.host import LocalPort
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.limits import Limits
from tests.net.harness import Network, eventually, sizes
from tests.net.loop_stack import running_stack
from tests.net.tcp import Service, Tcp, echo, service

pytestmark = pytest.mark.slow

_UNFAIR: Final = 1e-6  # a fair choice is this uneven once in a million runs
_AT_ONCE: Final = 20
_SOON: Final = 3.0  # seconds; less than a host without an answer costs
_HASTY: Final = Limits(open_wait_start=0.2, open_wait_lost=0.2)  # an open waits briefly for a host to come back


def _named(name: bytes) -> Callable[[Tcp], Awaitable[None]]:
    """A service that sends its name, then echoes."""

    async def handle(tcp: Tcp) -> None:
        await tcp.send(name)
        await echo(tcp)

    return handle


async def _who(port: int) -> bytes:
    async with asyncio.timeout(_SOON), await Tcp.connect(port) as tcp:
        return await tcp.receive_exactly(1)


@contextlib.contextmanager
def _closed_port() -> Iterator[int]:
    """A port on which no program listens, and none will."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


# --- the choice of a host ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", sizes(600, 10_000))
async def test_choice_is_uniform(tmp_path: Path, count: int) -> None:
    """Each of three hosts gets a third of the connections, within the limits of chance."""
    async with AsyncExitStack() as services, running_stack(tmp_path) as stack:
        split: list[Service] = []
        for _ in range(3):
            split.append(await services.enter_async_context(service(_named(b"!"))))
            await stack.host(split[-1].port)
        _, port = await stack.client()

        async def worker() -> None:
            for _ in range(count // _AT_ONCE):
                await _who(port)

        await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
    counted = [one.accepted for one in split]
    assert sum(counted) == count
    chi_square = sum((one - count / 3) ** 2 / (count / 3) for one in counted)
    probability = math.exp(-chi_square / 2)  # exact for two degrees of freedom
    print(counted, f"p = {probability:.3g}")
    assert probability > _UNFAIR


async def test_refused_dial_goes_elsewhere_unseen(tmp_path: Path) -> None:
    """While one of two hosts cannot reach its service, the other serves every connection, and no program notices."""
    asked: list[Stream] = []
    async with service(_named(b"A")) as running, running_stack(tmp_path) as stack:
        with _closed_port() as closed:
            refusing = LocalPort("127.0.0.1", closed, stack.limits)

            def serve(driver: EndpointDriver, stream: Stream) -> None:
                asked.append(stream)
                refusing(driver, stream)

            refusing.host = await stack.host(serve)
            await stack.host(running.port)
            _, port = await stack.client()
            split = Counter(await asyncio.gather(*(_who(port) for _ in range(60))))
        assert split == {b"A": 60}
        assert asked, "the host that refuses was never asked"
        assert not stack.resets


async def test_killed_host_gets_no_more(network: Network) -> None:
    """After kill -9 of one of two hosts new connections work at once, on the other."""
    name = await network.service()
    async with service(_named(b"A")) as a, service(_named(b"B")) as b:
        victim, _ = await asyncio.gather(network.host(name, a.port), network.host(name, b.port))
        _, port = await network.connect(name)
        assert {await _who(port) for _ in range(40)} == {b"A", b"B"}
        victim.stop(signal.SIGKILL)
        assert {await _who(port) for _ in range(20)} == {b"B"}


async def test_drained_host_finishes_what_it_has(network: Network) -> None:
    """After SIGTERM a host carries its running stream to its end, accepts no new ones, then exits 0."""
    name = await network.service()
    async with service(_named(b"A")) as a, service(_named(b"B")) as b:
        leaving = await network.host(name, a.port, "--drain-time", "30")
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as running:
            assert await running.receive_exactly(1) == b"A"
            await network.host(name, b.port)
            leaving.send_signal(signal.SIGTERM)
            await network.has_live_hosts(name, 1)
            assert {await _who(port) for _ in range(20)} == {b"B"}
            await running.send(b"still there?")
            assert await running.receive_exactly(12) == b"still there?"
            assert leaving.status is None
            running.finish()
            assert await running.receive_all() == b""
        assert await leaving.ended() == 0


# --- no host, no service, no port ----------------------------------------------------------------------


async def _ask(port: int, request: bytes) -> bytes:
    """The outcome of a connection. A quick reset may already be there when connecting, or sending, is done."""
    async with asyncio.timeout(_SOON), await Tcp.connect(port) as tcp:
        await tcp.send(request)
        return await tcp.receive()


@pytest.mark.parametrize("request_", [b"", b"hello\n"], ids=["silent", "request"])
async def test_no_live_host_is_a_reset(network: Network, tmp_path: Path, request_: bytes) -> None:
    """Without a live host a connection is reset, not closed normally, and the agent logs why in one line."""
    async with service(echo) as running, running_stack(tmp_path, _HASTY) as stack:
        network.environment |= {"KDISPATCH_RELAY": stack.url, "KDISPATCH_TOKEN": stack.token}
        host = await stack.host(running.port)
        agent, port = await network.connect(stack.service)
        host.withdraw()
        await eventually(lambda: len(stack.switch.registry.hosts_of(stack.service)), 0)
        with pytest.raises(ConnectionResetError) as caught:
            await _ask(port, request_)
        assert caught.value.errno == errno.ECONNRESET
        await agent.says(r"\[no_live_host\]")
        assert len(agent.err.splitlines()) == 1
        assert re.fullmatch(r"\S+ warning +A connection to .* was reset: .* \[no_live_host\]\n", agent.err)


async def test_host_that_just_left_is_no_live_host(tmp_path: Path) -> None:
    """An OPEN that crosses its host's WITHDRAW gets `no_live_host`, not `unknown_service`: the service exists."""

    def left(driver: EndpointDriver, stream: Stream) -> None:
        driver.refuse(stream, "unknown_service", "This host does not offer that service.")

    async with running_stack(tmp_path, _HASTY) as stack:
        await stack.host(left)
        _, port = await stack.client()
        with pytest.raises(ConnectionResetError):
            await _ask(port, b"")
        assert stack.resets == ["no_live_host"]


def _printed_error(text: str, code: str) -> bool:
    """Whether the output is one error with this code, in its three lines, and nothing else."""
    return re.fullmatch(rf"kdispatch: .+ \[{code}\]\n  where: .+\n  try:   .+\n", text) is not None


async def test_connect_says_what_is_not_there(network: Network) -> None:
    """A missing service, host or free port ends ``agent connect`` at once, each with its status and code."""
    name = await network.service()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        unknown = network.agent("unknown", "connect", "ann/nothing", "--wait", "60")
        nobody = network.agent("nobody", "connect", name, "--wait", "0")
        in_use = network.agent("in-use", "connect", name, "--port", port)
        assert [await agent.ended() for agent in (unknown, nobody, in_use)] == [3, 3, 1]
    assert _printed_error(unknown.err, "unknown_service")
    assert _printed_error(nobody.err, "no_live_host")
    assert _printed_error(in_use.err, "port_in_use")


async def test_host_needs_its_port(network: Network) -> None:
    """``agent host`` on a closed port exits 1 and offers nothing."""
    name = await network.service()
    with _closed_port() as port:
        agent = network.agent("host", "host", name, "--port", str(port), "--wait", "0")
        assert await agent.ended() == 1
    assert _printed_error(agent.err, "local_port_closed")
    assert await network.live_hosts(name) == 0


async def test_host_follows_its_port(network: Network) -> None:
    """A host is withdrawn while its port is closed and offered when it is back; with --exit-when-closed it exits 1."""
    name, other = await network.service(), await network.service()
    async with service(_named(b"A")) as first:
        host, leaving = await asyncio.gather(
            network.host(name, first.port), network.host(other, first.port, "--exit-when-closed")
        )
        assert await network.live_hosts(name) == await network.live_hosts(other) == 1
    await network.has_live_hosts(name, 0)
    await network.has_live_hosts(other, 0)
    assert await leaving.ended() == 1
    assert _printed_error(leaving.err, "local_port_closed")
    async with service(_named(b"B"), port=first.port):
        await network.has_live_hosts(name, 1)
        _, port = await network.connect(name)
        assert await _who(port) == b"B"
    assert host.status is None
