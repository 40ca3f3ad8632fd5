"""Real processes with a log file each; all end with the block that started them."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.guards.environment import inherited

ROOT: Final = Path(__file__).parents[2]
#: The console script of the running environment.
KDISPATCH: Final = str(Path(sys.executable).parent / "kdispatch")

_START: Final = 15.0  # seconds for a process to be ready; a slow machine takes two
_STOP: Final = 10.0  # seconds for a process to end after a signal, before it is killed


class NotReadyError(Exception):
    """A process ended, or did not print the expected line."""


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Program:
    """A process that runs until it is stopped; its output goes to its log."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    async def says(self, pattern: str) -> str:
        """Wait for a line that matches and return its first group; raises ``NotReadyError``."""
        deadline = asyncio.get_running_loop().time() + _START
        while True:
            ended = self.process.returncode is not None
            if found := re.search(pattern, self.log.read_text(errors="replace"), re.MULTILINE):
                return found[1] if found.groups() else found[0]
            if ended or asyncio.get_running_loop().time() > deadline:
                how = f"ended with status {self.process.returncode}" if ended else f"took more than {_START:g} s"
                raise NotReadyError(f"{self.name} {how} and did not say {pattern!r}")
            await asyncio.sleep(0.02)

    async def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal to the process and wait for its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        try:
            return await asyncio.wait_for(self.process.wait(), _STOP)
        except TimeoutError:
            self.process.kill()
            return await self.process.wait()


class Programs:
    """Starts processes with one environment in one folder. Use it as an async context manager."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = {}) -> None:
        self.folder = folder
        own = {"KDISPATCH_CONFIG_DIR": str(folder / "config"), "KDISPATCH_STATE_DIR": str(folder / "state")}
        self.environment = {**inherited(), **own, **environment}
        self.started: list[Program] = []

    async def start(self, name: str, *command: str, cwd: Path = ROOT) -> Program:
        """Start a program that keeps running; its output goes to its log."""
        log = self.folder / f"{len(self.started):02}-{name.replace(' ', '-')}.log"
        with log.open("wb") as file:
            # In its own session, so that Ctrl-C does not reach it directly.
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=cwd,
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.started.append(Program(name, process, log))
        return self.started[-1]

    async def run(self, *command: str, cwd: Path = ROOT) -> Ended:
        """Run a command to its end."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            if process.returncode is None:
                process.kill()
                await process.wait()
            raise
        return Ended(process.returncode or 0, out.decode(), err.decode())

    def logs(self) -> str:
        """Return the output of all programs, each under its name."""
        parts = []
        for program in self.started:
            state = "running" if program.process.returncode is None else f"exit {program.process.returncode}"
            text = program.log.read_text(errors="replace").rstrip()
            parts.append(f"--- {program.name} ({state})\n{text or '(nothing)'}")
        return "\n".join(parts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In any order, because no remaining process has state to save.
        await asyncio.gather(*(program.end(signal.SIGKILL) for program in self.started))
