"""The service behind a host: awaited, found at either loopback address, missed, and found again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kdispatch.client import Client
from kdispatch.host import Host, LocalPort
from kdispatch.local import port as local_port
from kdispatch.local.pipe import Pipe
from kdispatch.machine.operating_system import HERE
from kdispatch.network.dialer import Dialer
from kdispatch_protocol.errors import KdispatchError
from tests.agent.test_local_sockets import WATCHED, watches
from tests.aio.twin import SCALED, SERVICE, Program, running_gate, until
from tests.guards.promises import promised
from tests.net.tcp import echo, service


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.asynccontextmanager
async def _offered(local: LocalPort) -> AsyncIterator[tuple[Host, Any]]:
    """A host that offers this port, and watches it; and the gate."""
    async with running_gate() as relay:
        host = Host(Dialer(relay.url), SERVICE, "token", local, limits=SCALED)
        local.host = host
        await host.start(2)
        watching = asyncio.create_task(local.watch())
        try:
            yield host, relay.gate
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await host.stop()


@pytest.mark.timed
async def test_a_service_that_starts_later_is_waited_for(closed_port: int) -> None:
    """A host waits for its service to listen, as long as configured, and no longer."""
    local = LocalPort("127.0.0.1", closed_port)
    with pytest.raises(KdispatchError) as caught:
        await local.check(0)
    assert caught.value.code == "local_port_closed"
    waiting = asyncio.create_task(local.check(20))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    async with service(echo, port=closed_port):
        began = time.monotonic()
        await waiting
        assert time.monotonic() - began < promised(2 * local_port._LOOK_SOON)


async def test_a_service_at_the_other_address() -> None:
    """A service on ::1 only is found for "localhost", and called there; 127.0.0.1 stands only for itself."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        port = listener.getsockname()[1]
        local = LocalPort("localhost", port)
        await local.check()
        assert local.address == "::1"
        dial = local._target.begin()
        assert dial.there == HERE.waits_for_sockets
        with await dial.finish() as sock:
            assert sock.family == socket.AF_INET6
        with pytest.raises(KdispatchError):
            await LocalPort("127.0.0.1", port).check()


@pytest.mark.parametrize(
    ("number", "code"), [(socket.EAI_NONAME, "bad_request"), (socket.EAI_AGAIN, "local_port_closed")]
)
async def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch, number: int, code: str) -> None:
    """An unknown name is reported at once; a name that cannot be looked up may be known a moment later."""

    async def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "no")

    # uvloop's own create_connection does not use the loop's getaddrinfo.
    monkeypatch.setattr(asyncio, "open_connection", refuse)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", refuse, raising=False)
    wait = promised(0.3)
    began = time.monotonic()
    with pytest.raises(KdispatchError, match="name") as caught:
        await LocalPort("db.example", 80).check(wait)
    assert caught.value.code == code
    assert (time.monotonic() - began < 0.7 * wait) == (code == "bad_request")


@pytest.mark.timed
async def test_a_restart_is_a_short_absence(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    """A service that has just gone is checked often, so it is offered again soon after it listens again."""
    monkeypatch.setattr(local_port, "LOOK_EVERY", 0.3)
    local = LocalPort("127.0.0.1", closed_port)
    async with contextlib.AsyncExitStack() as running:
        await running.enter_async_context(service(echo, port=closed_port))
        async with _offered(local) as (_, gate):
            await running.aclose()
            await until(lambda: not gate.hosts_of(SERVICE))
            monkeypatch.setattr(local_port, "LOOK_EVERY", 2.0)
            await asyncio.sleep(0.1)
            async with service(echo, port=closed_port):
                began = time.monotonic()
                await until(lambda: gate.hosts_of(SERVICE))
                assert time.monotonic() - began < promised(1.0)


def test_looks_become_rarer() -> None:
    """A missing service is checked every 0.2 s at first, and every 2 s after a while."""
    assert [local_port.look_again(away) for away in (0, 1, 5, 20, 1000)] == [0.2, 0.2, 0.5, 2.0, 2.0]


async def test_a_name_that_is_lost_withdraws_nothing(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    """While a name cannot be looked up, the service's state is unknown, and it stays offered."""
    asked = 0

    async def is_open(*_: object) -> bool:
        nonlocal asked
        asked += 1
        raise socket.gaierror(socket.EAI_NONAME, "no")

    monkeypatch.setattr(local_port, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(local_port, "PROBE_EVERY", 0.01)
    monkeypatch.setattr(local_port, "is_open", is_open)
    async with _offered(LocalPort("127.0.0.1", closed_port)) as (_, gate):
        await until(lambda: asked > 5)
        assert gate.hosts_of(SERVICE)


async def test_a_vanished_service_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to the service has keep-alives for when it is silent."""
    seen: list[list[int] | None] = []
    take = Pipe.take

    def taken(self: Pipe, sock: socket.socket) -> None:
        seen.append(watches(sock))
        take(self, sock)

    monkeypatch.setattr(Pipe, "take", taken)
    async with service(echo) as running, _offered(LocalPort("127.0.0.1", running.port)) as (host, _):
        client = Client(host.uplink.dialer, limits=SCALED)
        await client.uplink.start(2)
        client.create_connection(SERVICE, Program())
        await until(lambda: seen)
        await client.stop()
    assert seen == [WATCHED] or seen == [None]
