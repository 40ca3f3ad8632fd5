"""Runs one program through a real tunnel whose client agent loses its network for a while."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.demo.processes import KDISPATCH, Program, Programs
from tests.faults.proxy import FaultProxy, fault_proxy
from tests.programs.install import find
from tests.programs.tunnel import free_port

__all__ = ["Case", "Outcome", "Site", "measure", "script", "served_by"]

_BACK: Final = 20.0  # seconds for the agent to reconnect, and for data that the program left to arrive
_PATIENCE: Final = 150.0  # seconds for a program after the pause: longer than any relevant timeout


@dataclass
class Site:
    """The tools of a case: its folder, processes that end with it, ports, and the clients' Python."""

    programs: Programs
    folder: Path
    python: str  #: from the environment with tests/pauses/requirements.txt
    port: int = 0  #: the client agent's, once the tunnel is up
    notes: dict[str, str] = field(default_factory=dict)

    async def serve(self, name: str, *command: str, ready: str = "", port: int = 0) -> Program:
        """Start a server; wait for a line that matches ``ready``, or until ``port`` accepts connections."""
        server = await self.programs.start(name, find(command[0]), *command[1:], cwd=self.folder)
        if ready:
            await server.says(ready)
        if port:
            await _listens(port, server)
        return server

    async def run(self, *command: str) -> str:
        """Run a set-up command to its end; returns its output."""
        ended = await self.programs.run(find(command[0]), *command[1:], cwd=self.folder)
        if ended.status:
            raise RuntimeError(f"{command[0]} ended with {ended.status}: {ended.err or ended.out}")
        return ended.out

    def file(self, name: str, text: str) -> str:
        """Write a file into the folder; returns its path."""
        path = self.folder / name
        path.write_text(text)
        return str(path)

    free_port = staticmethod(free_port)


def script(text: str) -> Callable[[Site], list[str]]:
    """The command for a client script in the clients' Python; its argument is the port."""

    def command(site: Site) -> list[str]:
        return [site.python, site.file("client.py", text), str(site.port)]

    return command


Good = Callable[[Site, str], str]


def _fine(_site: Site, _text: str) -> str:
    return ""


@dataclass(frozen=True)
class Case:
    """One program, its activity when the pause begins, and the check of its result."""

    name: str
    doing: str
    serve: Callable[[Site], Awaitable[int]]  #: starts the service; returns its port
    command: Callable[[Site], list[str]]  #: the command, with ``site.port``
    needs: tuple[str, ...] = ()  #: required programs; if one is missing the case is skipped
    begun: str = ""  #: a line of output that starts the wait for the pause; else only ``after`` counts
    after: float = 2.0  #: seconds from there to the pause
    good: Good = _fine  #: describes what is wrong with the result despite status 0; empty if nothing is
    counts: bool = False  #: ``good`` compares actions with reported ones, so it also applies after a failure
    version: tuple[str, ...] = ()  #: a command that prints the version, or ``pip`` and a package
    helps: str = ""  #: for the page: the setting that makes the program wait


@dataclass(frozen=True)
class Outcome:
    """The result of one program in one pause."""

    case: str
    pause: float  #: seconds
    survived: bool
    status: int | None
    after: float  #: seconds from the beginning of the pause to the program's end
    words: str  #: the program's last line, or the description of a wrong result
    wrong: bool  #: whether the result is wrong, at any exit status


async def measure(case: Case, pause: float, folder: Path, relay_port: int, python: str) -> Outcome:
    """Run a case with one pause in its own ``folder``; raises if its set-up fails."""
    environment = {
        "KDISPATCH_CONFIG_DIR": str(folder.parent / "config"),
        "KDISPATCH_STATE_DIR": str(folder / "state"),
        "HOME": str(folder),
        "PYTHONUNBUFFERED": "1",
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
    }
    async with Programs(folder, environment) as programs:
        site = Site(programs, folder, python)
        port = await case.serve(site)
        name = f"ann/{folder.name}"
        made = await programs.run(KDISPATCH, "service", "create", folder.name)
        if made.status:
            raise RuntimeError(made.err)
        host = await programs.start("host", KDISPATCH, "agent", "host", name, "--port", str(port))
        await host.says("is offered as")
        async with fault_proxy(relay_port) as network:
            way = ("--relay", network.url)
            client = await programs.start("client", KDISPATCH, "agent", "connect", name, "--port", "0", *way)
            site.port = int(await client.says(r"is reached by [^ ]*?:(\d+)"))
            try:
                return await _paused(case, pause, site, network)
            finally:
                await programs.run(KDISPATCH, "service", "delete", folder.name, "--yes")  # the quota is 100 services
                for program in programs.started:  # servers may have children
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(program.process.pid, signal.SIGKILL)


async def _paused(case: Case, pause: float, site: Site, network: FaultProxy) -> Outcome:
    command = case.command(site)
    program = await site.programs.start(case.name.replace("/", "-"), find(command[0]), *command[1:], cwd=site.folder)
    if case.begun:
        await program.says(case.begun)
    await asyncio.sleep(case.after)
    if _status(program) is not None:
        raise RuntimeError(f"{case.name} ended before the pause: {program.log.read_text(errors='replace')[-300:]}")
    began = time.monotonic()
    network.lose()
    ends = asyncio.create_task(program.process.wait())
    await asyncio.wait([ends], timeout=pause)
    took = time.monotonic() - began
    if ends.done():  # check the server's side only after the network is back
        await asyncio.sleep(max(0.0, pause - took))
    network.away = False
    if not ends.done():
        await asyncio.wait([ends], timeout=_PATIENCE)
        took = time.monotonic() - began
    else:
        await asyncio.sleep(_BACK)
    status = _status(program)
    text = program.log.read_text(errors="replace")
    wrong = "it still waits" if status is None else "" if status and not case.counts else case.good(site, text)
    words = wrong or _last(text)
    return Outcome(case.name, pause, status == 0 and not wrong, status, round(took, 1), words, bool(wrong))


def _status(program: Program) -> int | None:
    return program.process.returncode


def _last(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


async def _listens(port: int, server: Program) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if server.process.returncode is not None:
                break
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise RuntimeError(f"{server.name} does not listen: {server.log.read_text(errors='replace')[-500:]}")


def served_by(text: str) -> Callable[[Site], Awaitable[int]]:
    """Return a function that starts a server script in the clients' Python."""

    async def serve(site: Site) -> int:
        port = site.free_port()
        await site.serve("server", site.python, site.file("server.py", text), str(port), port=port)
        return port

    return serve
