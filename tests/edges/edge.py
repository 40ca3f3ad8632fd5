"""A real server in front of a relay, with the configuration from the pages for operators.

Only ports, addresses, files and the test's own changes differ from that configuration.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from bench.caddy import certificate
from tests.demo.processes import ROOT
from tests.net.harness import Process
from tests.programs.tunnel import free_port

__all__ = ["RELOADED", "RESTART", "UPSTREAM", "Edge", "children", "has_ipv6", "listens", "put", "snippets", "title"]

_PAGE: Final = ROOT / "docs" / "operations.md"
UPSTREAM: Final = "127.0.0.1:8443"  # as in the configurations
RELOADED: Final = 30.0  # seconds: on a busy machine varnishd's run of a C compiler is slow
RESTART: Final = 0.5  # seconds until a supervisor restarts an ended process
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(language: str) -> list[str]:
    """Return the blocks of docs/operations.md in this language."""
    return [code for found, code in _BLOCK.findall(_PAGE.read_text()) if found == language]


def put(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the configuration"
        text = text.replace(old, new)
    return text


class Edge(ABC):
    """A server in front of the relay that listens on port ``upstream``.

    ``changes`` are replacements in its configuration. ``cut_after``: seconds that tunnels stay with an old
    configuration, in place of the recommended long time. ``talkative``: log everything that an operator might want.
    """

    name: ClassVar[str]
    user: ClassVar[str] = ""  # the user to which root's process switches; it needs the folder
    stays: ClassVar[tuple[str, str]] = ("40m", "{:g}s")  # how long tunnels stay with an old configuration

    def __init__(
        self,
        folder: Path,
        upstream: int,
        *,
        changes: Mapping[str, str] = {},
        cut_after: float | None = None,
        talkative: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.upstream = upstream
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.certificates = folder / "certificate.pem"
        self._changes = dict(changes)
        if cut_after is not None:
            written, seconds = self.stays
            self._changes[written] = seconds.format(cut_after)
        self._talkative = talkative
        self._started: list[Process] = []

    @classmethod
    @abstractmethod
    def lacks(cls) -> str:
        """What is missing on this machine to run it; empty if nothing is."""

    @abstractmethod
    def configuration(self) -> str:
        """The content of its configuration file."""

    @abstractmethod
    def command(self, *, check: bool = False) -> list[str]:
        """The command that starts it, or with ``check`` only checks its configuration."""

    @abstractmethod
    async def ready(self) -> None:
        """Return when it accepts connections."""

    @abstractmethod
    async def reload(self) -> None:
        """Activate the configuration, changed or not, as operators do; returns when it is active."""

    @abstractmethod
    async def crash(self) -> None:
        """Kill the processes that carry tunnels, and restart them; returns when it accepts connections again."""

    @property
    def file(self) -> Path:
        """The configuration file."""
        return self.folder / "configuration"

    @property
    def trust(self) -> dict[str, str]:
        """The environment of agents that trust its certificate."""
        return {"SSL_CERT_FILE": str(self.certificates)}

    @property
    def environment(self) -> dict[str, str]:
        """The server's own environment."""
        return {"HOME": str(self.folder)}

    @property
    def process(self) -> Process:
        return self._started[-1]

    async def start(self) -> None:
        """Start it; returns when it accepts connections."""
        if not self.certificates.exists():
            self.make_certificates()
        self.write()
        self._started.append(Process(self.name, self.command(), self.folder, self.environment))
        await self.ready()

    def make_certificates(self) -> None:
        certificate(self.folder)

    def files(self) -> dict[str, str]:
        """The configuration files, by their names in the folder."""
        return {self.file.name: self.configuration()}

    def write(self) -> None:
        """Write the configuration files; each of ``changes`` is applied to every file that contains it."""
        files = self.files()
        for old, new in self._changes.items():
            assert any(old in text for text in files.values()), f"{old!r} is not in the configuration"
            files = {name: text.replace(old, new) for name, text in files.items()}
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def checked(self) -> str:
        """Let the program check its configuration and return its output; fails if the program rejects it."""
        self.make_certificates()
        self.write()
        environment = {**os.environ, **self.environment}
        ended = subprocess.run(
            self.command(check=True), env=environment, capture_output=True, text=True, check=False, timeout=30
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    @property
    def logs(self) -> dict[str, str]:
        """All its log output, by file."""
        files = [file for pattern in ("*.out", "*.err", "*.log") for file in self.folder.rglob(pattern)]
        return {file.name: file.read_text(errors="replace") for file in files}

    def stop(self) -> None:
        """End all of its processes."""
        for process in self._started:
            process.stop()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "gone, shutting down"
