"""kdispatch under Wine, in the places that tests/net gives to kdispatch on Linux."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final, NamedTuple

from tests.guards.environment import inherited
from tests.net.harness import Network, Process
from tests.net.tcp import Tcp
from tests.windows.environment import WinePython, windows_path

__all__ = ["Done", "WindowsConsole", "WindowsNetwork", "WindowsProcess", "echoes", "same"]

_COMMAND_WAIT: Final = 60.0  # seconds; a command takes two on an idle machine
_LAST_OUTPUT: Final = 0.5  # seconds for the output of an ended program to be read


async def same(tcp: Tcp, text: bytes = b"hello") -> None:
    """Send a text, and get it back."""
    async with asyncio.timeout(20):
        await tcp.send(text)
        assert await tcp.receive_exactly(len(text)) == text


async def echoes(port: int) -> None:
    """A new connection to this port gets back what it sends."""
    async with await Tcp.connect(port) as tcp:
        await same(tcp)


class Done(NamedTuple):
    """An ended command."""

    status: int
    out: str
    err: str


class WindowsProcess(Process):
    """A running program of Windows. Its streams are pipes, because Wine's programs can't use files for them."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self._out, self._err = bytearray(), bytearray()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
        self._readers = [
            threading.Thread(target=_read, args=(stream, into), daemon=True)
            for stream, into in ((self._process.stdout, self._out), (self._process.stderr, self._err))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def out(self) -> bytes:
        return bytes(self._out).replace(b"\r\n", b"\n")

    @property
    def err(self) -> str:
        return self._err.decode(errors="replace").replace("\r\n", "\n")

    async def done(self, given: str | bytes = "", wait: float = _COMMAND_WAIT) -> Done:
        """Give it its input, and wait for its end."""
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(given if isinstance(given, bytes) else given.encode())
        status = await self.ended(wait)
        for reader in self._readers:  # Wine's own processes may hold its standard error open for long
            await asyncio.to_thread(reader.join, _LAST_OUTPUT)
        return Done(status, self.out.decode(errors="replace"), self.err)

    async def output(self, wait: float = _COMMAND_WAIT) -> str:
        """Its standard output, at its end. An agent in the background has none of it, but Wine's standard error."""
        await asyncio.to_thread(self._readers[0].join, wait)
        assert not self._readers[0].is_alive(), f"something holds the output of {self.name} open"
        return self.out.decode()

    def close(self) -> None:
        """Close its input, once it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        for reader in self._readers:
            reader.join(1.0)


class WindowsConsole(Process):
    """A running program in a console of its own, which Wine shows in a pseudoterminal. :meth:`press` types keys."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self._screen = bytearray()
        self._keyboard, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))  # lines, columns
        try:
            # The terminal of a session of its own: only then Ctrl-C means the program.
            command = ["setsid", "--ctty", *command]
            self._process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
        finally:
            os.close(inner)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: all programs have closed it
            while data := os.read(self._keyboard, 65536):
                self._screen += data

    @property
    def out(self) -> bytes:
        """What it wrote, without the moves of the cursor, of which Wine makes some instead of spaces."""
        return re.sub(rb"\x1b\[[?\d;]*[A-Za-z]", b"", re.sub(rb"\x1b\[\d*C", b" ", bytes(self._screen)))

    @property
    def err(self) -> str:
        """Nothing: a console shows both."""
        return ""

    def press(self, keys: bytes) -> None:
        os.write(self._keyboard, keys)

    def close(self) -> None:
        """Close the terminal, once the program has ended."""
        self._reader.join(1.0)
        os.close(self._keyboard)


def _read(stream: IO[bytes] | None, into: bytearray) -> None:
    assert stream is not None
    with stream:
        while data := stream.read1(65536):  # type: ignore[attr-defined]  # Popen's pipes are buffered readers
            into += data


class WindowsNetwork(Network):
    """Agents under Wine on a relay on Linux. Their directories have names with spaces."""

    def __init__(self, folder: Path, url: str, token: str, windows: WinePython) -> None:
        super().__init__(folder, url, token)
        self.windows = windows
        self.state = folder / "local state"
        self.environment |= {
            **windows.variables,
            "KDISPATCH_CONFIG_DIR": windows_path(folder / "the settings"),
            "KDISPATCH_STATE_DIR": windows_path(self.state),
        }

    def start(self, name: str, *arguments: str, **variables: str) -> WindowsProcess:
        """Start ``kdispatch`` with these arguments; a variable with an empty value is left out."""
        return self._started(name, self._kdispatch(*arguments), variables)

    def start_wine(self, name: str, *command: str, **variables: str) -> WindowsProcess:
        """Start another program of Windows, with the variables of kdispatch's."""
        return self._started(name, ["wine", *command], variables)

    def _started(self, name: str, command: list[str], variables: Mapping[str, str]) -> WindowsProcess:
        process = WindowsProcess(f"{name}-{len(self.processes)}", command, self._given(variables))
        self.processes.append(process)
        return process

    def console(self, name: str, *arguments: str, **variables: str) -> WindowsConsole:
        """The same in a console."""
        command = self._kdispatch(*arguments)
        process = WindowsConsole(f"{name}-{len(self.processes)}", command, self._given(variables))
        self.processes.append(process)
        return process

    def _kdispatch(self, *arguments: str) -> list[str]:
        return self.windows.command("-m", "kdispatch", *arguments)

    def _given(self, variables: Mapping[str, str]) -> dict[str, str]:
        given = {**inherited(), **self.environment, **variables}
        return {key: value for key, value in given.items() if value or key == "DISPLAY"}

    def program(self, name: str, *command: str, given: Path = Path(os.devnull)) -> Process:
        """Start a program of Linux, which gets directories of its own."""
        environment = {key: value for key, value in self.environment.items() if key not in self.windows.variables}
        for key in ("CONFIG", "STATE"):
            environment[f"KDISPATCH_{key}_DIR"] = str(self.folder / "on-linux" / key.lower())
        process = Process(f"{name}-{len(self.processes)}", list(command), self.folder, environment, given)
        self.processes.append(process)
        return process

    def agent(self, name: str, *arguments: str) -> Process:
        return self.start(name, "agent", *arguments)

    async def run(self, *arguments: str, given: str | bytes = "", **variables: str) -> Done:
        """Run a command to its end."""
        return await self.start(arguments[0], *arguments, **variables).done(given)

    def stop(self) -> None:
        super().stop()
        for process in self.processes:
            if isinstance(process, WindowsProcess | WindowsConsole):
                process.close()
