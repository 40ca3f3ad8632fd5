"""Ports that an agent listens on: from the start, exclusively, and at every address of the name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from kdispatch import client as client_module
from kdispatch.addresses import bare, place
from kdispatch.client import Client, LocalListener
from kdispatch.local.front import Front, HandOver, one_service
from kdispatch.local.sockets import listening, reason
from kdispatch.network.dialer import Dialer
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.session.aio import sockets as options
from tests.aio.twin import SCALED, SERVICE, Running, running_gate, until
from tests.net.tcp import Tcp


@contextlib.asynccontextmanager
async def _listener(
    relay: Running, address: str = "127.0.0.1", front: Front | None = None
) -> AsyncIterator[tuple[Client, LocalListener]]:
    client = Client(Dialer(relay.url), limits=SCALED)
    listener = LocalListener(client, front or one_service(SERVICE))
    await listener.listen(address, 0)
    try:
        yield client, listener
    finally:
        listener.close()
        await client.stop()


def _is_taken(address: str, port: int, *flags: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as other:
        for flag in flags:
            other.setsockopt(socket.SOL_SOCKET, flag, 1)
        try:
            other.bind((address, port))
            other.listen()
        except OSError as error:
            # Anything else is another matter. Windows denies the access to a port that is held exclusively.
            assert error.errno in {errno.EADDRINUSE, errno.EACCES if sys.platform == "win32" else 0}  # noqa: PT017
            return True
    return False


async def test_a_port_is_ours_from_the_first_moment() -> None:
    """Before the first accept, another program cannot listen on the port, whatever options it sets."""
    async with running_gate() as relay, _listener(relay) as (_, listener):
        for flags in (
            (),
            (socket.SO_REUSEADDR,),
            (socket.SO_REUSEADDR, getattr(socket, "SO_REUSEPORT", socket.SO_REUSEADDR)),
        ):
            for address in ("127.0.0.1", "0.0.0.0"):
                assert _is_taken(address, listener.port, *flags)


async def test_connections_wait_for_a_host() -> None:
    """A connection that comes before there is a host is accepted, and carried with all its data when there is one."""
    async with running_gate() as relay, _listener(relay) as (client, listener), await Tcp.connect(listener.port) as tcp:
        await tcp.send(b"early")
        await until(lambda: listener._waiting)
        assert not client.driver.streams
        listener.serve()
        await until(lambda: client.driver.streams)
        await until(lambda: any(s.outbound.end == 5 for s in client.driver.endpoint.table.by_uuid.values()))


async def test_connections_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection waits no longer than an open may take, and only a limited number waits."""
    monkeypatch.setattr(client_module, "_MOST_WAITING", 1)
    async with running_gate() as relay, _listener(relay) as (client, listener):
        monkeypatch.setattr(client.driver.endpoint, "limits", replace(SCALED, open_wait=0.1))
        async with await Tcp.connect(listener.port) as one, await Tcp.connect(listener.port) as other:
            for tcp in (other, one):
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(tcp.receive(), 5)
        await until(lambda: not listener._waiting and not client.driver.pipes)


async def test_early_bytes_follow_an_open_that_went_first() -> None:
    """What a front has read before it hands a connection over is the first data of the stream, exactly once."""

    def reads(sock: socket.socket, hand_over: HandOver) -> None:
        hand_over(sock, SERVICE, b"read by the front, ")

    async with running_gate() as relay, _listener(relay, front=reads) as (client, listener):
        listener.serve()
        async with await Tcp.connect(listener.port) as tcp:
            await tcp.send(b"and not")
            streams = client.driver.endpoint.table.by_uuid
            await until(lambda: any(stream.outbound.end == 26 for stream in streams.values()))
            [stream] = streams.values()
            assert stream.outbound._unsent is not None
            assert b"".join(map(bytes, stream.outbound._unsent)) == b"read by the front, and not"


async def test_a_service_that_was_taken_back_resets_new_connections() -> None:
    """After the relay has revoked the rights on a service, a new connection is reset at once, and leaves nothing."""
    async with running_gate() as relay, _listener(relay) as (client, listener):
        listener.serve()
        client._no_more(SERVICE, "revoked", "The right has ended.")
        with pytest.raises(ConnectionResetError):  # while it connects, or when it reads
            async with await Tcp.connect(listener.port) as tcp:
                await asyncio.wait_for(tcp.receive(), 5)
        await until(lambda: not client.driver.pipes and not client.driver.streams)


async def test_every_address_of_a_name_has_the_same_port() -> None:
    """A name with several addresses is listened on at all of them, with one port, also if that is a free one."""
    made = await listening("localhost", 0)
    with contextlib.ExitStack() as ending:
        for sock in made:
            ending.enter_context(sock)
        places = {sock.getsockname()[:2] for sock in made}
        known = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        assert {address for address, _ in places} <= known
        assert len({port for _, port in places}) == 1
        for address, port in places:
            with pytest.raises(KdispatchError) as caught:
                await listening(address, port)
            assert caught.value.code == "port_in_use" and place(address, port) in caught.value.text


async def test_the_address_that_is_taken_is_named() -> None:
    """If one address of a name is in use, nothing is listened on, and the error names that address."""
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with taken:
        port = taken.getsockname()[1]
        if len(socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)) < 2:
            pytest.skip("localhost has one address here")
        with pytest.raises(KdispatchError) as caught:
            await listening("localhost", port)
        assert caught.value.code == "port_in_use" and f"[::1]:{port}" in caught.value.text
        assert not _is_taken("127.0.0.1", port)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), "the connection was refused"),
        (TimeoutError(), "the connection timed out"),
        (OSError(errno.ENETUNREACH, "x"), "Network is unreachable"),
        (socket.gaierror(socket.EAI_NONAME, "x"), "the name is unknown"),
        (
            OSError(
                f"Multiple exceptions: [Errno {errno.ECONNREFUSED}] Connect call failed (a), "
                f"[Errno {errno.EHOSTUNREACH}] b, [Errno {errno.ECONNREFUSED}] c"
            ),
            "the connection was refused, the host is unreachable",
        ),
        (
            OSError("Multiple exceptions: [WinError 1225] It refused the connection, [WinError 121] b"),
            "the connection was refused, the connection timed out",
        ),
    ],
)
def test_reasons(error: OSError, said: str) -> None:
    """An error states each reason once, and not the name of a system call."""
    assert reason(error) == said


def test_addresses_as_they_are_written() -> None:
    """An IPv6 address has brackets before a port, and may be given with them."""
    assert bare("[::1]") == bare("::1") == "::1"
    assert place("::1", 80) == "[::1]:80" and place("127.0.0.1", 80) == "127.0.0.1:80"


def watches(sock: socket.socket) -> list[int] | None:
    """The keep-alive options of a socket; ``None`` if the system does not tell them."""
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    try:
        tcp = [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names]
    except OSError:  # Wine 8 sets them, and does not tell
        if sys.platform == "win32":
            return None
        raise
    return [sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *tcp]


WATCHED = [1, options.KEEP_IDLE, options.KEEP_INTERVAL, options.KEEP_COUNT]


async def test_vanished_programs_are_looked_for() -> None:
    """Each connection that a local port accepts has keep-alives for when its program is silent."""
    async with running_gate() as relay, _listener(relay) as (client, listener), await Tcp.connect(listener.port):
        await until(lambda: client.driver.pipes)
        [pipe] = client.driver.pipes
        assert pipe.socket is not None
        assert watches(pipe.socket.get_extra_info("socket")) in (WATCHED, None)
