"""Real processes: started, awaited by their output, inspected in /proc, ended by their pid."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["KDISPATCH", "PYTHON", "ROOT", "Processes", "Program", "cpu_seconds"]

ROOT: Final = Path(__file__).parents[1]
PYTHON: Final = sys.executable
#: The console script of the running environment.
KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))

_START: Final = 20.0  # seconds to be ready; a start takes half a second on an idle machine
_STOP: Final = 10.0  # seconds to end after SIGTERM, before it is killed
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int], *, system: bool = False) -> float:
    """CPU seconds of the processes so far, in total; with ``system`` only the kernel's part."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[12]) + (0 if system else int(fields[11]))
    return ticks / _TICKS


def _inherited() -> dict[str, str]:
    """The environment without this user's relay and tokens."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KDISPATCH_")}
    return kept | {name: os.environ[name] for name in ("KDISPATCH_NO_UVLOOP",) if name in os.environ}


class Program:
    """A running process; its standard output and standard error go to its log."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def resident(self) -> int:
        """Resident memory in bytes."""
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[0]) * 1024

    @property
    def loop(self) -> str:
        """The event loop that the process has loaded."""
        mapped = Path(f"/proc/{self.pid}/maps").read_text()
        if "python" not in mapped:
            return "-"
        parts = [name for name in ("uvloop", "aiofastnet") if f"/{name}/" in mapped]
        return " + ".join(parts) if "uvloop" in parts else " + ".join(["asyncio", *parts])

    def says(self, pattern: str, wait: float = _START) -> str:
        """Wait for output that matches; returns the first group, or the whole match."""
        deadline = time.monotonic() + wait
        while True:
            ended = self.process.poll() is not None
            text = self.log.read_text(errors="replace")
            if found := re.search(pattern, text, re.MULTILINE):
                return found[1] if found.groups() else found[0]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} (exit {self.process.returncode}) never said {pattern!r}:\n{text}")
            time.sleep(0.005)

    def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL after a while."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # for input that it did not read
                self.process.stdin.close()


class Processes:
    """Starts processes with one environment in one folder; they end in reverse order."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = {}) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.environment = {**_inherited(), **environment}
        self.started: list[Program] = []

    def start(
        self, name: str, *command: str, descriptors: Sequence[int] = (), stdin: int = subprocess.DEVNULL
    ) -> Program:
        """Start a program that keeps running. ``stdin`` may be a pipe for the caller to write to."""
        log = self.folder / f"{len(self.started):02}-{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=stdin,
                stdout=file,
                stderr=file,
                pass_fds=descriptors,
            )
        program = Program(name, process, log)
        self.started.append(program)
        return program

    def run(self, *command: str) -> str:
        """Run a program to its end; returns its standard output."""
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def stop(self) -> None:
        """End all processes."""
        for program in reversed(self.started):
            program.stop()
