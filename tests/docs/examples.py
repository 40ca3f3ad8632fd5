"""The examples of a page, found by the comment above them, and run as real processes.

``<!-- test: ends -->`` marks a block that must end with status 0, and
``<!-- test: stays until "TEXT" -->`` one that runs on once it has printed TEXT.
A ``text`` block right after one that ends is what it must print. Ports that the
page names become free ones.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.demo.processes import KDISPATCH, ROOT, NotReadyError, Program, Programs

_BLOCK: Final = re.compile(
    r'^<!-- test: (?:(?P<ends>ends)|stays until "(?P<ready>[^"]+)") -->\n'
    r"```(?P<language>\w+)\n(?P<code>.*?)^```\n(?:\n```text\n(?P<prints>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
_PORTS: Final = ("8443", "8080", "9090")


@dataclass(frozen=True)
class Example:
    language: str
    code: str
    ready: str | None  #: what a block that stays prints when it is ready
    prints: str | None


def examples_of(page: str, section: str = "") -> list[Example]:
    """The marked blocks of a page, or of one section of it, in their order."""
    text = (ROOT / page).read_text()
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = [
        Example(block["language"], block["code"], block["ready"], block["prints"]) for block in _BLOCK.finditer(text)
    ]
    assert len(found) == text.count("<!-- test:"), f"{page} has a mark without a block"
    return found


def free_ports(count: int) -> Iterator[str]:
    """Ports that were free a moment ago, and differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    for one in sockets:
        yield str(one.getsockname()[1])
    for one in sockets:
        one.close()


class Runner:
    """Runs the examples of a page in a folder of their own, with a home of their own.

    ``ports`` are those that stand for more of the page's: those of servers that run already.
    """

    def __init__(self, folder: Path, ports: Mapping[str, str] = {}) -> None:
        self._ports = {**dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True)), **ports}
        path = f"{Path(KDISPATCH).parent}:/usr/local/bin:/usr/bin:/bin"
        self.folder = folder
        self.programs = Programs(
            folder,
            {
                "PATH": path,
                "HOME": str(folder),
                "XDG_DATA_HOME": str(folder / "data"),
                "KDISPATCH_SERVE_LISTEN": f"127.0.0.1:{self._ports['8443']}",
                "PYTHONUNBUFFERED": "1",
            },
        )

    async def run(self, example: Example) -> str:
        """Run one example as its mark says; return what it printed."""
        code = self.with_free_ports(example.code)
        if example.language == "python":
            command = [sys.executable, "-c", code]
        else:
            # What stays takes the shell's place, so that it is the process that gets ended.
            command = ["sh", "-euc", f"exec {code}" if example.ready else code]
        if example.ready is not None:
            program = await self.programs.start(example.language, *command, cwd=self.folder)
            await self._until_ready(program, example)
            return program.log.read_text()
        ended = await self.programs.run(*command, cwd=self.folder)
        assert ended.status == 0, f"{code}\n{ended.out}\n{ended.err}\n{self.programs.logs()}"
        if example.prints is not None:
            assert ended.out == self.with_free_ports(example.prints), code
        return ended.out

    def with_free_ports(self, text: str) -> str:
        """The text with free ports in place of those that the page names."""
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text

    async def _until_ready(self, program: Program, example: Example) -> None:
        assert example.ready is not None
        try:
            await program.says(re.escape(example.ready))
        except NotReadyError as error:
            raise AssertionError(f"{error}\n{example.code}\n{self.programs.logs()}") from None
