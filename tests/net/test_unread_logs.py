"""Relay and agents work as before if their standard error is not read."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from tests.guards.promises import promised
from tests.net.harness import _KDISPATCH, Network, Process, Relay
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow

_CONNECTIONS = 120  # each writes a line of some 200 bytes at both agents and the relay
_PIPE = 4096  # bytes that a pipe holds here, so that few lines fill it


class _Unread:
    """A pipe that fills quickly, and that is not read until :meth:`text`."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE)

    def close(self) -> None:
        os.close(self.writer)

    async def text(self) -> str:
        """What was written, once all writers are gone."""

        def read() -> str:
            with os.fdopen(self._reader, errors="replace") as file:
                return file.read()

        return await asyncio.to_thread(read)


async def test_nobody_reads_what_they_say(tmp_path: Path) -> None:
    """Relay, host and client whose standard error is a full pipe serve every connection, and end in time."""
    pipes = [_Unread() for _ in range(3)]
    started: list[Process] = []
    relay = Relay(tmp_path)
    await relay.start()
    network = Network(tmp_path, relay.url, relay.token)

    def start(*command: str) -> Process:
        writer = pipes[len(started)].writer
        started.append(
            Process(command[1], [_KDISPATCH, *command, "-v"], tmp_path, network.environment, errors_to=writer)
        )
        return started[-1]

    try:
        name = await network.service()
        relay.stop()
        database = str(tmp_path / "relay.db")
        start("relay", "serve", "--listen", relay.url.partition("://")[2], "--database", database, "--drain-time", "0")
        async with service(echo) as local:
            options = ("--drain-time", "0", "--wait", "30")
            await start("agent", "host", name, "--port", str(local.port), *options).says("offered as")
            said = await start("agent", "connect", name, *options).says(r"reached by 127.0.0.1:(\d+)")
            for _ in range(_CONNECTIONS):
                async with asyncio.timeout(10), await Tcp.connect(int(said[1])) as tcp:
                    await tcp.send(b"hello")
                    assert await tcp.receive_exactly(5) == b"hello"
        for pipe in pipes:
            pipe.close()
        for one in reversed(started):
            assert one.stop(wait=promised(8.0)) == 0
        for pipe in pipes:
            assert (await pipe.text()).count("\n") < _CONNECTIONS
    finally:
        network.stop()
        relay.stop()
        for one in started:
            one.stop(wait=promised(8.0))
