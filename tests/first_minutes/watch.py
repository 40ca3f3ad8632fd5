"""The tokens of a run, and where they appear."""

from __future__ import annotations

import asyncio
import contextlib
import re
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from kdispatch_protocol.tokens import format_token
from tests.first_minutes.person import Ended

__all__ = ["Watch", "token_of", "watch"]

# Characters of a token's secret that count as a leak: 72 of its 256 bits.
_TELLTALE: Final = 12


class Watch:
    """The tokens of a run, all output, and the command lines of the machine's processes."""

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}
        self.seen: list[tuple[str, str]] = []
        self.command_lines: set[str] = set()

    def learn(self, name: str, token: str) -> str:
        """Add a token to look for; returns it."""
        assert re.fullmatch(r"(adm|svc|cli|hst|inv)_[A-Za-z0-9_-]{51}", token), name
        self.tokens[name] = token
        return token

    def saw(self, where: str, text: str) -> None:
        """Add a text that people or logs can see."""
        self.seen.append((where, text))

    def saw_archive(self, archive: Path) -> None:
        """Add the content of a ZIP file that people share."""
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                self.saw(f"{name} of {archive.name}", f"{name}\n{opened.read(name).decode('latin-1')}")

    def ended(self, ended: Ended, *, shows: bool = False) -> Ended:
        """Add a command's output; ``shows`` if its standard output is the one place that shows a token."""
        self.saw(f"stderr of {ended.command}", ended.err)
        if not shows:
            self.saw(f"stdout of {ended.command}", ended.out)
        return ended

    async def processes(self) -> None:
        """Read all command lines repeatedly, until cancelled."""
        while True:
            # In a thread: on the loop, the guard against blocking calls would check each of thousands of reads.
            await asyncio.to_thread(self._look)
            await asyncio.sleep(0.05)  # a command runs several times as long

    def _look(self) -> None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    self.command_lines.add((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1"))

    def leaks(self) -> list[str]:
        """Each token that was seen, and where."""
        everything = [*self.seen, *(("a command line", line) for line in self.command_lines)]
        return [
            f"{name} in {where}: {text[:2000]}"
            for name, token in self.tokens.items()
            for where, text in everything
            if any(token[at : at + _TELLTALE] in text for at in range(4, 4 + 43 - _TELLTALE))
        ]


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    """A watch over the machine's command lines for the duration of the test."""
    watch = Watch()
    looking = asyncio.create_task(watch.processes())
    yield watch
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


def token_of(kind: str, number: int) -> str:
    """A well-formed token that no relay has issued."""
    return format_token(kind, bytes((number * 7 + at * 13) % 251 for at in range(32)))
