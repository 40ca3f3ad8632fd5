"""Finds a page's examples by the comment above them, and runs them as real processes.

``<!-- test: ends -->`` marks a block that must end with status 0, and
``<!-- test: stays until "TEXT" -->`` one that keeps running after it has printed TEXT.
A ``text`` block directly after one that ends is its expected output. Ports in the
page are replaced by free ones.
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
    ready: str | None  #: output of a block that stays, when it is ready
    prints: str | None


def examples_of(page: str, section: str = "") -> list[Example]:
    """The marked blocks of a page, or of one of its sections, in order."""
    text = (ROOT / page).read_text()
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = [
        Example(block["language"], block["code"], block["ready"], block["prints"]) for block in _BLOCK.finditer(text)
    ]
    assert len(found) == text.count("<!-- test:"), f"{page} has a mark without a block"
    return found


def free_ports(count: int) -> Iterator[str]:
    """Yield different ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    for one in sockets:
        yield str(one.getsockname()[1])
    for one in sockets:
        one.close()


class Runner:
    """Runs a page's examples in their own folder, with their own home.

    ``ports`` replace more of the page's ports: those of servers that run already.
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
        """Run one example as its mark says; return its output."""
        code = self.with_free_ports(example.code)
        if example.language == "python":
            command = [sys.executable, "-c", code]
        else:
            # A command that stays replaces the shell, so that a signal reaches it.
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
        """Replace the page's ports in the text by free ones."""
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text

    async def _until_ready(self, program: Program, example: Example) -> None:
        assert example.ready is not None
        try:
            await program.says(re.escape(example.ready))
        except NotReadyError as error:
            raise AssertionError(f"{error}\n{example.code}\n{self.programs.logs()}") from None
