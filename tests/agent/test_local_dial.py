"""Connections to the local service: connected or refused at once if the kernel can tell, and otherwise awaited."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kdispatch.local.dial import LocalDial, Target, checked_address
from kdispatch.local.pipe import reset_when_closed
from kdispatch.local.sockets import reason
from kdispatch_protocol.errors import KdispatchError
from tests.guards.systems import WAITS_FOR_SOCKETS
from tests.net.black_hole import black_hole


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as made:
        yield made


@contextlib.contextmanager
def _full(listener: socket.socket) -> Iterator[list[socket.socket]]:
    """Fill the queue of unaccepted connections: the kernel drops the next handshake and waits for another."""
    with contextlib.ExitStack() as ending:
        waiting: list[socket.socket] = []
        for _ in range(8):
            one = ending.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
            waiting.append(one)
        yield waiting


@WAITS_FOR_SOCKETS
async def test_loopback_is_there_at_once(listener: socket.socket) -> None:
    """A connection to a listener on this machine needs no turn of the loop."""
    dial = Target(*listener.getsockname()).begin()
    assert dial.there and dial.sock is not None
    accepted, _ = listener.accept()
    with accepted, await dial.finish() as sock:
        accepted.sendall(b"hello")
        assert await asyncio.get_running_loop().sock_recv(sock, 5) == b"hello"


@WAITS_FOR_SOCKETS
async def test_refused_at_once(listener: socket.socket) -> None:
    """A port without a listener refuses without a turn of the loop, with the kernel's reason."""
    address, port = listener.getsockname()
    listener.close()
    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        Target(address, port).begin()


@pytest.fixture
async def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name with the addresses of this machine."""
    loop = asyncio.get_running_loop()
    right = loop.getaddrinfo

    async def getaddrinfo(host: str, port: int, **more: Any) -> Any:
        return await right("localhost" if host == "service.example" else host, port, **more)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo, raising=False)
    return "service.example"


async def test_a_name_is_looked_up(listener: socket.socket, name: str) -> None:
    """A name needs a look-up, so its connection is awaited; one working address is enough."""
    dial = Target(name, listener.getsockname()[1]).begin()
    assert not dial.there and dial.sock is None
    with await dial.finish():
        accepted, _ = listener.accept()
        accepted.close()


async def test_an_address_without_an_answer_costs_little(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one address of a name does not answer, the next is tried soon, and the first is not waited for."""
    loop = asyncio.get_running_loop()
    right = loop.getaddrinfo
    with black_hole("127.0.0.2") as silent:
        places = [("127.0.0.2", silent), listener.getsockname()]

        async def getaddrinfo(host: str, port: int, **more: Any) -> Any:
            if host != "service.example":  # uvloop looks numeric addresses up, too
                return await right(host, port, **more)
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", place) for place in places]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo, raising=False)
        async with asyncio.timeout(10):
            with await Target("service.example", 80).begin().finish() as sock:
                assert sock.getpeername() == listener.getsockname()


async def test_a_name_that_refuses(listener: socket.socket, name: str) -> None:
    """A name without a listener at any address fails like a numeric address."""
    port = listener.getsockname()[1]
    listener.close()
    dial = Target(name, port).begin()
    with pytest.raises(OSError, match=r"WinError 1225" if sys.platform == "win32" else "Connect call failed") as caught:
        await dial.finish()
    assert reason(caught.value) == "the connection was refused"


@WAITS_FOR_SOCKETS
@pytest.mark.slow  # the kernel sends its SYN again after a second
async def test_a_listener_that_is_busy(listener: socket.socket) -> None:
    """A handshake that the listener does not complete is awaited, and completes when there is room again."""
    with _full(listener):
        dial = Target(*listener.getsockname()).begin()
        assert not dial.there and dial.sock is not None
        waiting = asyncio.create_task(dial.finish())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        while not waiting.done():
            accepted = await asyncio.to_thread(listener.accept)
            accepted[0].close()
            await asyncio.sleep(0.01)
        (await waiting).close()


@WAITS_FOR_SOCKETS
async def test_given_up(listener: socket.socket) -> None:
    """A dial that is cancelled while it waits leaves the loop, and its socket can be closed."""
    with _full(listener):
        dial = Target(*listener.getsockname()).begin()
        assert dial.sock is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await dial.finish()
        assert not asyncio.get_running_loop().remove_writer(dial.sock)
        dial.close()
        assert dial.sock.fileno() == -1


@WAITS_FOR_SOCKETS
async def test_a_service_that_speaks_and_resets_at_once() -> None:
    """A connection that was reset early counts as connected if data from the service waits to be read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        sock = socket.create_connection(("127.0.0.1", port))
        sock.settimeout(0)
        service, _ = listener.accept()
        service.sendall(b"too many connections")
        reset_when_closed(service)
        service.close()
        async with asyncio.timeout(2):
            assert await LocalDial(Target("127.0.0.1", port), sock).finish() is sock
    assert sock.recv(100) == b"too many connections"
    with pytest.raises(ConnectionResetError):
        sock.recv(100)
    sock.close()


@WAITS_FOR_SOCKETS
async def test_a_service_that_resets_without_a_word() -> None:
    """A connection that was reset with nothing to be read has failed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        sock.settimeout(0)
        service, _ = listener.accept()
        reset_when_closed(service)
        service.close()
        with pytest.raises(ConnectionResetError):
            await LocalDial(Target(*listener.getsockname()), sock).finish()
    sock.close()


@pytest.mark.parametrize("address", ["127.0.0.1:80", "localhost:8080", "[::1]:80"])
def test_an_address_with_a_port(address: str) -> None:
    """An address that includes a port is refused with the option for it; IPv6 addresses are not taken for one."""
    with pytest.raises(KdispatchError) as caught:
        checked_address(address)
    assert caught.value.code == "bad_request" and "--port" in caught.value.hint  # type: ignore[attr-defined]
    assert checked_address("fe80::1%1") == "fe80::1%1" and checked_address("::1") == "::1"
