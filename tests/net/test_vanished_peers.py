"""A program whose machine vanishes, in its own network namespace: its connection does not stay for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from kdispatch.client import Client, LocalListener
from kdispatch.host import Host, LocalPort
from kdispatch.local import vanished
from kdispatch.local.front import one_service
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.session.aio import sockets
from tests.net.harness import eventually
from tests.net.loop_stack import Stack, running_stack
from tests.net.tcp import Tcp, echo, service

pytestmark = [pytest.mark.slow, pytest.mark.accept]

_NETWORK: Final = f"198.18.{os.getpid() % 256}"  # this worker's own: others run beside it
_HERE: Final = f"{_NETWORK}.1"
_THERE: Final = f"{_NETWORK}.2"

_CLIENT: Final = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    print("talks", flush=True)
    time.sleep(60)
"""
#: Talks without a pause, or (with a third argument) reads nothing for so many seconds, and then all of it.
_BUSY: Final = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    print("talks", flush=True)
    time.sleep(float(sys.argv[3]))
    size = 0
    while data := sock.recv(65536):
        size += len(data)
    print(size, flush=True)
"""
_SERVER: Final = """
import socket, sys, time
with socket.create_server((sys.argv[1], 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    sock, _ = listener.accept()
    with sock:
        while data := sock.recv(100):
            sock.sendall(data)
"""


class _Away:
    """Another machine, whose network can go away."""

    def __init__(self) -> None:
        self.name = f"kd{secrets.token_hex(4)}"
        self.processes: list[subprocess.Popen[str]] = []

    def make(self) -> None:
        end, other = f"{self.name}a", f"{self.name}b"
        _ip("netns", "add", self.name)
        _ip("link", "add", end, "type", "veth", "peer", "name", other)
        _ip("link", "set", other, "netns", self.name)
        _ip("addr", "add", f"{_HERE}/30", "dev", end)
        _ip("link", "set", end, "up")
        _ip("-n", self.name, "addr", "add", f"{_THERE}/30", "dev", other)
        _ip("-n", self.name, "link", "set", other, "up")

    def run(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def vanish(self) -> None:
        """Let the machine vanish silently: packets to and from it are dropped."""
        _ip("-n", self.name, "addr", "flush", "dev", f"{self.name}b")

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        subprocess.run(["ip", "link", "del", f"{self.name}a"], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Away]:
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("needs ip of iproute2, and root")
    monkeypatch.setattr(sockets, "KEEP_IDLE", 1)
    monkeypatch.setattr(sockets, "KEEP_INTERVAL", 1)
    monkeypatch.setattr(sockets, "KEEP_COUNT", 2)
    other = _Away()
    try:
        try:
            other.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield other
    finally:
        other.end()


@contextlib.asynccontextmanager
async def _reaching(stack: Stack) -> AsyncIterator[tuple[Client, LocalListener]]:
    """A client of the stack's service, and its port on the address that other machines reach."""
    client = Client(Dialer(RelayUrl.parse(stack.url)))
    listener = LocalListener(client, one_service(stack.service))
    await listener.listen(_HERE, 0)
    with contextlib.closing(listener):
        await client.uplink.start(5)
        listener.serve()
        yield client, listener


async def test_a_vanished_client(tmp_path: Path, away: _Away) -> None:
    """When the machine of a connected program is gone, its stream ends within the time of the keep-alives."""
    async with service(echo) as running, running_stack(tmp_path) as stack:
        await stack.host(running.port)
        async with _reaching(stack) as (client, listener):
            program = away.run(_CLIENT, _HERE, str(listener.port))
            assert program.stdout is not None
            assert await asyncio.to_thread(program.stdout.readline) == "talks\n"
            assert client.driver.streams == 1
            away.vanish()
            await eventually(lambda: (client.driver.streams, running.open), (0, 0), wait=15)
            await client.stop()


async def _pour(tcp: Tcp) -> None:
    """Answer, and then send 8 MiB in small parts."""
    await tcp.send(await tcp.receive_exactly(5))
    for _ in range(2048):
        await tcp.send(bytes(4096))
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("stops", [0, 6])
async def test_a_client_that_vanishes_amid_bytes(
    tmp_path: Path, away: _Away, monkeypatch: pytest.MonkeyPatch, stops: float
) -> None:
    """A machine that vanishes during a transfer is noticed; a program that only stops reading gets all of it."""
    monkeypatch.setattr(vanished, "PATIENCE", 4.0)  # longer than the kernel waits between two probes by then
    monkeypatch.setattr(vanished, "LOOK_EVERY", 0.1)
    async with service(_pour) as running, running_stack(tmp_path) as stack:
        await stack.host(running.port)
        async with _reaching(stack) as (client, listener):
            program = away.run(_BUSY, _HERE, str(listener.port), str(stops))
            assert program.stdout is not None
            assert await asyncio.to_thread(program.stdout.readline) == "talks\n"
            if stops:
                assert await asyncio.to_thread(program.stdout.readline) == f"{2048 * 4096}\n"
            else:
                await asyncio.sleep(0.5)
                away.vanish()
            await eventually(lambda: (client.driver.streams, running.open), (0, 0), wait=15)
            await client.stop()


async def test_a_vanished_service(tmp_path: Path, away: _Away) -> None:
    """When the machine of the service is gone, its clients are reset within the time of the keep-alives."""
    program = away.run(_SERVER, _THERE)
    assert program.stdout is not None
    port = int(await asyncio.to_thread(program.stdout.readline))
    async with running_stack(tmp_path) as stack:
        local = LocalPort(_THERE, port)
        host = Host(Dialer(RelayUrl.parse(stack.url)), stack.service, stack.token, local)
        local.host = host
        await host.start(5)
        _, reached = await stack.client()
        async with await Tcp.connect(reached) as tcp:
            await tcp.send(b"hello")
            assert await tcp.receive_exactly(5) == b"hello"
            away.vanish()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(tcp.receive(), 15)
        await host.stop()
