"""Agents and relays whose terminal is closed, and those that a script starts in its background."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient
from tests.net.harness import LOOPS, Network, Relay, eventually
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow

_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
_SOON: Final = 25.0  # seconds: far below the grace, after which peers would know as well
#: Run the rest with this signal ignored, as shells (INT) and nohup (HUP) do.
_IGNORING: Final = ("sh", "-c", "trap '' $0; exec \"$@\"")


class Terminal:
    """A program in the foreground of its own terminal."""

    def __init__(self, environment: dict[str, str], *command: str) -> None:
        self._master, slave = pty.openpty()
        self._text = b""
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - nothing here holds a lock
        )  # fmt: skip
        os.close(slave)
        os.set_blocking(self._master, False)

    @property
    def text(self) -> str:
        """What it has shown so far."""
        with suppress(BlockingIOError, OSError):
            while data := os.read(self._master, 65536):
                self._text += data
        return self._text.decode()

    async def says(self, text: str) -> None:
        await eventually(lambda: text in self.text, expected=True, wait=30)

    def key(self, key: bytes) -> None:
        os.write(self._master, key)

    def hang_up(self) -> None:
        os.close(self._master)
        self._master = -1

    async def ended(self) -> int:
        await eventually(lambda: self.process.poll() is not None, expected=True, wait=_SOON)
        return self.process.wait()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._master >= 0:
            os.close(self._master)


@contextmanager
def _on_terminal(network: Network, *command: str) -> Iterator[Terminal]:
    terminal = Terminal(network.environment, *command)
    try:
        yield terminal
    finally:
        terminal.stop()


@asynccontextmanager
async def _connected(network: Network, name: str) -> AsyncIterator[Tcp]:
    _, port = await network.connect(name)
    async with await Tcp.connect(port) as tcp:
        await _echoes(tcp, b"begun")
        yield tcp


async def _echoes(tcp: Tcp, text: bytes) -> None:
    await tcp.send(text)
    assert await tcp.receive_exactly(len(text)) == text


async def _is_reset(tcp: Tcp) -> None:
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(_SOON):
            await tcp.receive()


async def test_a_closed_terminal(network: Network) -> None:
    """A host whose terminal is closed ends in order: its clients are told, and do not wait for a grace."""
    name = await network.service()
    async with service(echo) as local:
        command = [_KDISPATCH, "agent", "host", name, "--port", str(local.port), "--drain-time", "0.2"]
        with _on_terminal(network, *command) as terminal:
            await terminal.says("is offered as")
            async with _connected(network, name) as tcp:
                terminal.hang_up()
                await _is_reset(tcp)
                assert await terminal.ended() == 0
                assert await network.live_hosts(name) == 0


async def test_hangups_are_one(network: Network) -> None:
    """Of several SIGHUPs, or one after SIGTERM, the first signal counts: what runs goes on, then the status is 0."""
    name = await network.service()
    async with service(echo) as local:
        for first in (signal.SIGHUP, signal.SIGTERM):
            host = await network.host(name, local.port, "--drain-time", "60")
            async with _connected(network, name) as tcp:
                host.send_signal(first)
                await host.says("Draining")
                host.send_signal(signal.SIGHUP)
                host.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.3)
                await _echoes(tcp, b"goes on")
                tcp.finish()
                assert await host.ended(_SOON) == 0


async def test_nohup(network: Network, own_relay: Relay) -> None:
    """An agent under nohup outlives its terminal, and output without a reader does not harm it."""
    name = await network.service()
    async with service(echo) as local:
        command = [_KDISPATCH, "agent", "host", name, "--port", str(local.port), "--drain-time", "0"]
        with _on_terminal(network, *_IGNORING, "HUP", *command) as terminal:
            await terminal.says("is offered as")
            async with _connected(network, name) as tcp:
                terminal.hang_up()
                terminal.process.send_signal(signal.SIGHUP)
                own_relay.stop(signal.SIGKILL)  # so that there is something to report
                await own_relay.start()
                await _echoes(tcp, b"goes on")
            terminal.process.send_signal(signal.SIGTERM)
            assert await terminal.ended() == 0


async def test_a_relay(own_relay: Relay) -> None:
    """A relay without its own certificate goes on at SIGHUP, and reports that there is nothing to read again."""
    own_relay.running.send_signal(signal.SIGHUP)
    await own_relay.running.says("SIGHUP: the relay has no certificate of its own to read again, and goes on.")
    async with own_relay.rest() as rest:
        await rest.whoami()
    assert own_relay.running.stop() == 0


async def test_a_relay_whose_terminal_is_closed(network: Network, tmp_path: Path) -> None:
    """A relay goes on when its terminal is closed, and ends with 0 on request."""
    command = [_KDISPATCH, "relay", "serve", "--listen", "127.0.0.1:0", "--database", str(tmp_path / "relay.db")]
    with _on_terminal(network, *command) as terminal:
        await terminal.says("listening on")
        terminal.hang_up()
        await asyncio.sleep(0.5)
        assert terminal.process.poll() is None
        terminal.process.send_signal(signal.SIGTERM)
        assert await terminal.ended() == 0


async def test_dev(network: Network) -> None:
    """'kdispatch dev' ends in order when its terminal is closed."""
    with _on_terminal(network, _KDISPATCH, "dev") as terminal:
        await terminal.says("Ctrl-C ends everything")
        terminal.hang_up()
        assert await terminal.ended() == 0


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("what", ["host", "relay", "dev", "status --watch"])
async def test_an_explicit_interrupt(network: Network, what: str, loop: str) -> None:
    """A process in a script's background, where shells ignore SIGINT, still ends by 'kill -INT'."""
    network.environment["KDISPATCH_NO_UVLOOP"] = "" if loop == "uvloop" else "1"
    name = await network.service()
    async with service(echo) as local:
        command, ready, status = {
            "host": (["agent", "host", name, "--port", str(local.port)], "is offered as", 0),
            "relay": (
                ["relay", "serve", "--listen", "127.0.0.1:0", "--database", str(network.folder / "own.db")],
                "listening on",
                0,
            ),
            "dev": (["dev"], "Ctrl-C ends everything", 0),
            "status --watch": (["status", "--watch"], "No agent runs here", 0),
        }[what]
        program = network.program("background", *_IGNORING, "INT", _KDISPATCH, *command)
        await program.says(ready)
        program.send_signal(signal.SIGINT)
        assert await program.ended(_SOON) == status


@pytest.mark.unguarded  # a process that ends at once waits briefly for its last output to be written
@pytest.mark.parametrize("what", ["host", "relay"])
async def test_a_second_explicit_interrupt(network: Network, what: str) -> None:
    """Also in a script's background, the second SIGINT ends a drain at once."""
    async with service(echo) as local:
        relay = network.program(
            "background", *_IGNORING, "INT", _KDISPATCH, "relay", "serve", "--listen", "127.0.0.1:0", "--database",
            str(network.folder / "own.db"), "--drain-time", "60",
        )  # fmt: skip
        url = (await relay.says(r"listening on (http://\S+)"))[1]
        async with RestClient(Dialer(RelayUrl.parse(url))) as rest:
            token = (await rest.sign_up("ann")).token
        network = Network(network.folder, url, token) if what == "relay" else network
        name = await network.service()
        host = network.program(
            "host",
            *_IGNORING,
            "INT",
            _KDISPATCH,
            "agent",
            "host",
            name,
            "--port",
            str(local.port),
            "--drain-time",
            "60",
        )
        try:
            await host.says("is offered as")
            async with _connected(network, name):
                program = host if what == "host" else relay
                program.send_signal(signal.SIGINT)
                await program.says("[Dd]raining")
                program.send_signal(signal.SIGINT)
                assert await program.ended(_SOON) == (130 if what == "host" else -signal.SIGINT)
        finally:
            network.stop()


async def test_an_interrupt_for_the_foreground(network: Network) -> None:
    """Ctrl-C for a script's foreground does not affect its background, where 'kill -INT' works."""
    name = await network.service()
    async with service(echo) as local:
        command = [_KDISPATCH, "agent", "host", name, "--port", str(local.port), "--drain-time", "0"]
        with _on_terminal(network, *_IGNORING, "INT", *command) as terminal:
            await terminal.says("is offered as")
            async with _connected(network, name) as tcp:
                terminal.key(b"\x03")
                await terminal.says("^C")
                await asyncio.sleep(0.3)
                await _echoes(tcp, b"goes on")
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.ended() == 0


async def test_detached_from_the_background(network: Network) -> None:
    """An agent that a background command started with --detach gets SIGINT like any other."""
    name = await network.service()
    async with service(echo) as local:
        command = ["agent", "host", name, "--port", str(local.port), "--detach", "--json"]
        starting = network.program("detach", *_IGNORING, "INT", _KDISPATCH, *command)
        pid = int((await starting.says(r'"pid": (\d+)'))[1])
        assert await starting.ended() == 0
        os.kill(pid, signal.SIGINT)
        await network.has_live_hosts(name, 0)
        records = network.folder / "state" / "agents"
        await eventually(lambda: len(list(records.glob("*.json"))), 0, wait=_SOON)
