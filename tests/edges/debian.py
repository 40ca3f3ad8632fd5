"""What the servers of docs/edges.md have in common: Debian's programs, with the page's configuration files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from tests.demo.processes import ROOT
from tests.edges.edge import RELOADED, RESTART, Edge, children, listens
from tests.net.harness import Process, eventually
from tests.programs.install import find

__all__ = ["CERTIFICATE", "KEY", "Debian"]

_PAGE: Final = ROOT / "docs" / "edges.md"
#: A block of the page, after the file name that belongs to it.
_FILE: Final = re.compile(r"`/etc/([^`]+)`[^`]*?\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KEY: Final = "/etc/ssl/private/relay.key"
CERTIFICATE: Final = "/etc/ssl/private/relay.pem"


def _page() -> dict[str, str]:
    """The page's files by their paths below /etc."""
    return dict(_FILE.findall(_PAGE.read_text()))


class Debian(Edge):
    """A server of the page; its files are in the folder, under their names in /etc."""

    program: ClassVar[str]
    paths: ClassVar[tuple[str, ...]]  # of its files below /etc; the first one starts it
    module: ClassVar[str] = ""  # another file that it needs

    @classmethod
    def lacks(cls) -> str:
        missing = cls.program if find(cls.program) == cls.program else cls.module
        if not missing or Path(missing).exists():
            return ""
        return f"{missing} is not installed: make programs gets it"

    @abstractmethod
    def adapted(self) -> Mapping[str, str]:
        """Return the replacements for the page's text: ports, addresses and paths."""

    def files(self) -> dict[str, str]:
        page = _page()
        files = {Path(path).name: page[path] for path in self.paths}
        for old, new in self.adapted().items():
            assert any(old in text for text in files.values()), f"{old!r} is not on the page"
            files = {name: text.replace(old, new) for name, text in files.items()}
        return files

    @property
    def file(self) -> Path:
        return self.folder / Path(self.paths[0]).name

    def configuration(self) -> str:
        return self.files()[self.file.name]

    async def ready(self) -> None:
        await eventually(self.listens, expected=True, wait=RELOADED)

    def listens(self) -> bool:
        assert self.process.status is None, "\n".join(self.logs.values())
        return listens(self.port)

    async def says_again(self, text: str, number: signal.Signals) -> None:
        """Send the signal; returns when the logs contain ``text`` once more."""
        before = self.said(text)
        self.process.send_signal(number)
        await eventually(lambda: self.said(text) > before, expected=True, wait=RELOADED)

    def said(self, text: str) -> int:
        return sum(log.count(text) for log in self.logs.values())

    def stop(self) -> None:
        """Kill its processes, including those with an older configuration."""
        for process in self._started:
            if process.status is None:
                _kill(process)

    async def crash(self) -> None:
        """Kill it and start it again, like its supervisor."""
        _kill(self.process)
        await asyncio.sleep(RESTART)
        await self.start()

    async def crash_workers(self) -> None:
        """Kill the worker processes that carry tunnels; their parent starts new ones."""
        before = children(self.process.pid)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: bool(children(self.process.pid) - before), expected=True, wait=RELOADED)
        await self.ready()


def _below(pid: int) -> list[int]:
    """All descendants of this process."""
    return [each for child in children(pid) for each in (child, *_below(child))]


def _kill(process: Process) -> None:
    """Kill a process and all its descendants."""
    below = _below(process.pid)
    process.stop(signal.SIGKILL)
    for pid in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
