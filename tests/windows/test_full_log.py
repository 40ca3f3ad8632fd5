"""The log of an agent in the background under Wine, when it is full while other programs hold its files open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.net.harness import eventually
from tests.net.tcp import Tcp, echo, service
from tests.windows.environment import windows_path
from tests.windows.running import WindowsNetwork, WindowsProcess

pytestmark = pytest.mark.slow

_FULL: Final = 8192  # bytes; 4 MiB would take minutes
_LINE: Final = 400  # bytes, more than the line of a connection has
_CONNECTIONS: Final = 60  # more than fit in a full log
#: Python imports this at its start, in the process in the background, too.
_SMALL_LOGS: Final = f"""\
from kdispatch.machine.background import BoundedLog
BoundedLog.__init__.__defaults__ = ({_FULL}, 2)
"""
#: How programs like ``tail`` and editors open a file, and how those do it that let no other program write.
_HOLD: Final = """\
import ctypes, sys
open_file = ctypes.WinDLL("kernel32").CreateFileW
open_file.restype = ctypes.c_void_p
handle = open_file(sys.argv[1], ctypes.c_ulong(0x80000000), int(sys.argv[2]), None, 3, 0, None)
assert handle != ctypes.c_void_p(-1).value
print("holds it", flush=True)
input()
"""
_READS_AND_WRITES: Final = 3
_NOTHING: Final = 0


class _Log(NamedTuple):
    """The log of an agent, and what it had when it was full."""

    new: Path
    old: Path

    def sizes(self) -> tuple[int, int]:
        return self.new.stat().st_size, self.old.stat().st_size

    def events(self) -> list[str]:
        lines = [line for file in (self.old, self.new) for line in file.read_text("utf-8").splitlines()]
        return [json.loads(line)["event"] for line in lines]


async def _holds(network: WindowsNetwork, path: Path, sharing: int) -> WindowsProcess:
    """A program that holds a file open until it gets a line; ``sharing`` is what others may do with the file."""
    command = network.windows.command("-c", _HOLD, windows_path(path), str(sharing))
    holder = network.start_wine("holder", *command[1:])
    await holder.says("holds it")
    return holder


async def _connections(port: int, count: int = _CONNECTIONS) -> None:
    for _ in range(count):
        async with await Tcp.connect(port) as tcp:
            await tcp.send(b"hello")
            tcp.finish()
            assert await tcp.receive_all() == b"hello"


async def test_a_full_log_that_others_hold_open(network: WindowsNetwork) -> None:
    """A full log starts anew while readers have it open, and grows on while a program locks the older one."""
    (network.folder / "sitecustomize.py").write_text(_SMALL_LOGS)
    path = f"{windows_path(network.folder)};{network.environment['PYTHONPATH']}"
    name = await network.service()
    async with service(echo) as running:
        given = ("--port", str(running.port), "--verbose", "--log-format", "json", "--json", "--detach")
        started = network.start("host", "agent", "host", name, *given, PYTHONPATH=path)
        agent = json.loads(await started.output())["id"]
        log = _Log(*(network.state / "agents" / f"{agent}{end}" for end in (".log", ".log.1")))
        try:
            await _fill(network, log, name)
        finally:
            assert (await network.run("agent", "stop", name)).status == 0


async def _fill(network: WindowsNetwork, log: _Log, name: str) -> None:
    _, port = await network.connect(name)
    reader = await _holds(network, log.new, _READS_AND_WRITES)
    await _connections(port)
    await eventually(log.old.exists, expected=True)
    new, old = log.sizes()
    assert new <= _FULL
    assert _FULL - _LINE <= old <= _FULL
    locked = await _holds(network, log.old, _NOTHING)
    await _connections(port)
    await eventually(lambda: log.sizes()[0] > _FULL, expected=True)
    assert log.sizes()[1] == old
    for holder in (locked, reader):
        assert (await holder.done("\n")).status == 0
    await _connections(port, 2)
    await eventually(lambda: log.sizes()[0] <= _FULL, expected=True)
    assert log.sizes()[1] > _FULL
    assert log.events().count("A connection ended.") > _CONNECTIONS
