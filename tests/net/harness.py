"""kdispatch as users run it: relay, host agents and client agents are processes of the installed console script.

Each is ended by its pid. Their output is kept in files, which a failing test shows.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import pytest
from _pytest.mark import ParameterSet

from kdispatch.network.dialer import Dialer
from kdispatch.network.trust import Trust
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient
from tests.relay.empty import write_empty_database

__all__ = [
    "KIB",
    "LOOPS",
    "MIB",
    "Network",
    "Process",
    "Relay",
    "Usage",
    "counts",
    "counts_at_rest",
    "eventually",
    "needs",
    "sizes",
]

KIB: Final = 1024
MIB: Final = 1024 * KIB

#: The event loops that an agent can run on here.
LOOPS: Final = ("asyncio", "uvloop") if importlib.util.find_spec("uvloop") else ("asyncio",)
_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
_START_WAIT: Final = 30.0  # seconds; a start takes half a second on an idle machine
_T = TypeVar("_T")


def sizes(small: object, full: object) -> list[ParameterSet]:
    """One test in two sizes: ``small`` in every run, ``full`` in the acceptance run."""
    return [pytest.param(small, id="small"), pytest.param(full, id="full", marks=pytest.mark.accept)]


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip the test, with the reason, if one of the programs is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


async def eventually(read: Callable[[], _T], expected: _T, wait: float = 30.0) -> None:
    """Return when ``read()`` gives the expected value; otherwise fail with the last value."""
    deadline = asyncio.get_running_loop().time() + wait
    while (last := read()) != expected and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.02)
    assert last == expected, f"{last} after {wait} s, not {expected}"


@dataclass(frozen=True)
class Usage:
    """The resources of a process, from /proc. Sizes are bytes; ``anonymous`` leaves out mapped files."""

    rss: int
    anonymous: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())

        def size(name: str) -> int:
            return int(fields[name].split()[0]) * KIB

        return cls(size("VmRSS"), size("RssAnon"), len(list(Path(f"/proc/{pid}/fd").iterdir())), int(fields["Threads"]))


class Process:
    """A running program, with its output in two files. It reads the file ``given``, or nothing.

    It inherits the descriptors ``kept``, under their numbers. ``errors_to`` gets its standard error instead of a file.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        environment: dict[str, str] | None = None,
        given: Path = Path(os.devnull),
        kept: tuple[int, ...] = (),
        errors_to: int | None = None,
    ) -> None:
        self.name = name
        self._files = (folder / f"{name}.out", folder / f"{name}.err")
        with given.open("rb") as stdin, self._files[0].open("ab") as out, self._files[1].open("ab") as err:
            # The output of an earlier process of this name is not read again.
            self._read_from = (out.tell(), err.tell())
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=out,
                stderr=err if errors_to is None else errors_to,
                env={**os.environ, **(environment or {})},
                pass_fds=kept,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> bytes:
        """Its standard output so far."""
        return self._files[0].read_bytes()[self._read_from[0] :]

    @property
    def err(self) -> str:
        """Its standard error so far."""
        return self._files[1].read_bytes()[self._read_from[1] :].decode(errors="replace")

    @property
    def text(self) -> str:
        """Both outputs so far."""
        return self.out.decode(errors="replace") + self.err

    @property
    def usage(self) -> Usage:
        return Usage.of(self.pid)

    @property
    def status(self) -> int | None:
        """Its exit status, once it has ended."""
        return self._process.poll()

    async def says(self, pattern: str, wait: float = _START_WAIT) -> re.Match[str]:
        """The first match of ``pattern`` in its output; fails if the process ends or time is up before."""
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            ended = self.status is not None
            if match := re.search(pattern, self.text):
                return match
            in_time = not ended and asyncio.get_running_loop().time() < deadline
            assert in_time, f"{self.name} (exit {self.status}) never said {pattern!r}:\n{self.text}"
            await asyncio.sleep(0.02)

    async def ended(self, wait: float = _START_WAIT) -> int:
        """Wait for its end; returns the exit status."""
        await eventually(lambda: self.status is not None, expected=True, wait=wait)
        return self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, wait: float = 30.0) -> int:
        """End it; returns the exit status."""
        if self.status is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(wait)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{self.name} did not end after {number.name}:\n{self.text}") from None


def counts(processes: list[Process]) -> list[tuple[int, int]]:
    """Open descriptors and threads of each."""
    usages = [process.usage for process in processes]
    return [(usage.descriptors, usage.threads) for usage in usages]


async def counts_at_rest(processes: list[Process]) -> list[tuple[int, int]]:
    """The same, once nothing has changed for a while."""
    before = counts(processes)
    while True:
        await asyncio.sleep(0.4)
        if (now := counts(processes)) == before:
            return now
        before = now


class Relay:
    """A relay in a process of its own, and an admin with an account on it; ``trust`` is how agents verify it."""

    def __init__(self, folder: Path, trust: Trust | None = None) -> None:
        self.folder = folder
        self._trust = trust or Trust()
        self.url = ""
        self.token = ""
        self.process: Process | None = None
        self.older: list[Process] = []  # relays that this one replaced while they ran

    async def replace(self, *options: str) -> Process:
        """Start the next relay beside this one on the same port, then drain this one by SIGTERM; returns this one."""
        older = self.running
        self.older.append(older)
        await self.start("--reuse-port", *options)
        older.send_signal(signal.SIGTERM)
        return older

    async def start(self, *options: str) -> None:
        """Start it on its earlier port and database; the first time, with empty tables, and sign up."""
        listen = self.url.partition("://")[2] or "127.0.0.1:0"
        database = self.folder / "relay.db"
        if not database.exists():
            await asyncio.to_thread(write_empty_database, database)
        command = [_KDISPATCH, "relay", "serve", "--listen", listen, "--database", str(database), *options]
        # Without this option it ends at once: there is no other relay to move to.
        name = f"relay-{len(self.older)}" if self.older else "relay"
        self.process = Process(name, command, self.folder, {"KDISPATCH_SERVE_DRAIN_TIME": "0"})
        self.url = (await self.process.says(r"listening on (https?://[^\s\"]+)"))[1]
        if not self.token:
            async with self.rest() as rest:
                self.token = (await rest.sign_up("ann")).token

    def rest(self) -> RestClient:
        """Its REST API, as its admin."""
        return RestClient(Dialer(self.address, trust=self._trust), token=self.token or None)

    @property
    def address(self) -> RelayUrl:
        return RelayUrl.parse(self.url)

    @property
    def running(self) -> Process:
        assert self.process is not None, "start() comes first"
        return self.process

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.stop(number)
        for older in self.older:
            older.stop(signal.SIGKILL)


class Network:
    """Agents of one test on the relay at ``url``; ``token`` is an admin's there. ``environment`` is for the agents."""

    def __init__(self, folder: Path, url: str, token: str) -> None:
        self.folder = folder
        self.url = url
        self._token = token
        self.processes: list[Process] = []
        self.environment = {
            "KDISPATCH_CONFIG_DIR": str(folder / "config"),
            "KDISPATCH_STATE_DIR": str(folder / "state"),
            "KDISPATCH_RELAY": url,
            "KDISPATCH_TOKEN": token,
        }

    async def service(self) -> str:
        """Create a service; returns its full name."""
        async with RestClient(Dialer(RelayUrl.parse(self.url)), token=self._token) as rest:
            return (await rest.create_service(f"s{secrets.token_hex(6)}")).service

    async def live_hosts(self, service: str) -> int:
        """How many hosts the relay's REST API reports."""
        async with RestClient(Dialer(RelayUrl.parse(self.url))) as rest:
            return (await rest.service(service)).live_hosts

    async def has_live_hosts(self, service: str, count: int, wait: float = 30.0) -> None:
        """Wait until the relay's REST API reports this many."""
        async with asyncio.timeout(wait):
            while await self.live_hosts(service) != count:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)

    def program(self, name: str, *command: str, given: Path = Path(os.devnull)) -> Process:
        """Start a program that ends with the test; ``given`` is its input."""
        process = Process(f"{name}-{len(self.processes)}", list(command), self.folder, self.environment, given)
        self.processes.append(process)
        return process

    def agent(self, name: str, *arguments: str) -> Process:
        """Start ``kdispatch agent`` with the arguments."""
        return self.program(name, _KDISPATCH, "agent", *arguments)

    async def host(self, service: str, port: int, *options: str) -> Process:
        """Start a host agent; returns when it is listed."""
        process = self.agent("host", "host", service, "--port", str(port), "--drain-time", "0", *options)
        await process.says("is offered as")
        return process

    async def connect(self, service: str, *options: str) -> tuple[Process, int]:
        """Start a client agent; returns it and its port."""
        process = self.agent("connect", "connect", service, "--drain-time", "0", *options)
        return process, int((await process.says(r"is reached by 127\.0\.0\.1:(\d+)"))[1])

    def stop(self) -> None:
        """End every process, in any state."""
        for process in reversed(self.processes):
            if process.status is None:
                process.stop(signal.SIGKILL)
