"""Relays that inherit their listening socket, from systemd or from a parent that does the same."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.demo.processes import KDISPATCH
from tests.net.harness import Process, eventually, needs
from tests.relay.test_listener import Visitors

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="there are no descriptors to hand over")]

#: Starts a relay as systemd does: the socket is descriptor 3, and the variables name the process that it is for.
_ACTIVATE: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="relay")
os.execv(sys.argv[2], sys.argv[2:])
"""


class _Parent:
    """Holds a listening socket, and starts relays on it. ``end`` kills them."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        self.port = listener.getsockname()[1]
        self._folder = folder
        self._listener = listener
        self._started: list[Process] = []

    async def relay(self) -> Process:
        """Start a relay; returns when it listens."""
        serve = (KDISPATCH, "relay", "serve", "--database", str(self._folder / "relay.db"))
        command = [sys.executable, "-c", _ACTIVATE, str(self._listener.fileno()), *serve]
        # The relay must ignore this address, because it has a socket.
        environment = {"KDISPATCH_SERVE_LISTEN": "127.0.0.1:1", "KDISPATCH_SERVE_DRAIN_TIME": "1"}
        name = f"relay-{len(self._started)}"
        process = Process(name, command, self._folder, environment, kept=(self._listener.fileno(),))
        self._started.append(process)
        assert int((await process.says(r"listening on http://127\.0\.0\.1:(\d+)"))[1]) == self.port
        return process

    def end(self) -> None:
        for process in self._started:
            process.stop(signal.SIGKILL)


@contextmanager
def _parent(folder: Path) -> Iterator[_Parent]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.set_inheritable(True)
        parent = _Parent(folder, listener)
        try:
            yield parent
        finally:
            parent.end()


@pytest.mark.parametrize("beside", [True, False], ids=["the next one first", "the old one first"])
async def test_restart_on_a_socket_that_stays(tmp_path: Path, beside: bool) -> None:
    """Relays that inherit one socket, one after the other, lose no connection to it.

    They may overlap, like two units with one socket, or not, like one unit that systemd restarts.
    """
    with _parent(tmp_path) as parent:
        relay = await parent.relay()
        visitors = Visitors(parent.port)
        async with visitors.come(8):
            await eventually(lambda: visitors.served > 8, expected=True)
            if beside:
                await parent.relay()
            relay.send_signal(signal.SIGTERM)
            assert await relay.ended() == 0
            if not beside:
                await parent.relay()
            before = visitors.served
            await eventually(lambda: visitors.served > before + 8, expected=True)
        assert visitors.failed == []


@needs("systemd-socket-activate")
async def test_systemd_socket_activate(tmp_path: Path) -> None:
    """A relay that systemd starts for the first connection answers it, at the address of the socket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = ("--database", str(tmp_path / "relay.db"), "--log-format", "json")
    command = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", "--fdname=relay", KDISPATCH, "relay", "serve"]
    process = Process("activated", [*command, *place], tmp_path)
    try:
        await process.says(f"Listening on 127.0.0.1:{port}")
        assert "listening on http" not in process.text, "systemd starts the relay at the first connection"
        visitors = Visitors(port)
        async with visitors.come(1):
            await process.says(f'"url": "http://127.0.0.1:{port}"')
        assert visitors.failed == []
        process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0
    finally:
        process.stop(signal.SIGKILL)


async def test_the_supervisor_is_told(tmp_path: Path) -> None:
    """The relay tells its supervisor, as systemd asks, when it listens and when it begins to end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(10)
        command = [KDISPATCH, "relay", "serve", "--listen", "127.0.0.1:0", "--database", str(tmp_path / "relay.db")]
        process = Process("notifying", command, tmp_path, {"NOTIFY_SOCKET": supervisor.getsockname()})
        try:
            assert await asyncio.to_thread(supervisor.recv, 64) == b"READY=1"
            await process.says("listening on")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(supervisor.recv, 64) == b"STOPPING=1"
            assert await process.ended() == 0
        finally:
            process.stop(signal.SIGKILL)
