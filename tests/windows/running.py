"""kdispatch under Wine, in the places that tests/net gives to kdispatch on Linux."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from pathlib import Path
from typing import IO, NamedTuple

from tests.net.harness import Network, Process
from tests.windows.environment import Windows, windows_path

__all__ = ["Done", "WindowsNetwork", "WindowsProcess"]

_COMMAND_WAIT = 60.0  # seconds; a command takes two on an idle machine


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
        return bytes(self._out)

    @property
    def err(self) -> str:
        return self._err.decode(errors="replace")

    async def done(self, given: str = "", wait: float = _COMMAND_WAIT) -> Done:
        """Give it its input, and wait for its end and for that of its output."""
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(given.encode())
        status = await self.ended(wait)
        for reader in self._readers:
            await asyncio.to_thread(reader.join, wait)
            assert not reader.is_alive(), f"{self.name} ended, but something holds its output open"
        return Done(status, self.out.decode().replace("\r\n", "\n"), self.err.replace("\r\n", "\n"))

    def close(self) -> None:
        """Close its input, once it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        for reader in self._readers:
            reader.join(1.0)


def _read(stream: IO[bytes] | None, into: bytearray) -> None:
    assert stream is not None
    with stream:
        while data := stream.read1(65536):  # type: ignore[attr-defined]  # Popen's pipes are buffered readers
            into += data


class WindowsNetwork(Network):
    """Agents under Wine on a relay on Linux. Their directories have names with spaces."""

    def __init__(self, folder: Path, url: str, token: str, windows: Windows) -> None:
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
        environment = {**os.environ, **self.environment, **variables}
        environment = {key: value for key, value in environment.items() if value or key == "DISPLAY"}
        command = self.windows.command("-m", "kdispatch", *arguments)
        process = WindowsProcess(f"{name}-{len(self.processes)}", command, environment)
        self.processes.append(process)
        return process

    def agent(self, name: str, *arguments: str) -> Process:
        return self.start(name, "agent", *arguments)

    async def run(self, *arguments: str, given: str = "", **variables: str) -> Done:
        """Run a command to its end."""
        return await self.start(arguments[0], *arguments, **variables).done(given)

    async def stop_agents(self) -> None:
        """End what still runs in the background."""
        agents = self.state / "agents"
        for record in agents.glob("*.json") if agents.exists() else ():
            await self.run("agent", "stop", "--now", record.stem)

    def stop(self) -> None:
        super().stop()
        for process in self.processes:
            if isinstance(process, WindowsProcess):
                process.close()
