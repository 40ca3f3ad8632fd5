"""Tokens of a run, and where they show."""

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

# Characters of a token's secret whose appearance gives it away: 72 of its 256 bits.
_TELLTALE: Final = 12


class Watch:
    """The tokens of a run, what was printed anywhere, and the command lines of the machine's processes."""

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}
        self.seen: list[tuple[str, str]] = []
        self.command_lines: set[str] = set()

    def learn(self, name: str, token: str) -> str:
        """A token to look for."""
        assert re.fullmatch(r"(adm|svc|cli|hst|inv)_[A-Za-z0-9_-]{51}", token), name
        self.tokens[name] = token
        return token

    def saw(self, where: str, text: str) -> None:
        """Something that people or logs get to see."""
        self.seen.append((where, text))

    def saw_archive(self, archive: Path) -> None:
        """A ZIP file that people are to hand on."""
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                self.saw(f"{name} of {archive.name}", f"{name}\n{opened.read(name).decode('latin-1')}")

    def ended(self, ended: Ended, *, shows: bool = False) -> Ended:
        """A command; ``shows`` where its standard output is the one place that shows a token."""
        self.saw(f"stderr of {ended.command}", ended.err)
        if not shows:
            self.saw(f"stdout of {ended.command}", ended.out)
        return ended

    async def processes(self) -> None:
        """Look at all command lines, again and again, until cancelled."""
        while True:
            # In a thread: the guard against what blocks the loop looks at each of thousands of reads for long.
            await asyncio.to_thread(self._look)
            await asyncio.sleep(0.05)  # a command takes several times as long

    def _look(self) -> None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    self.command_lines.add((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1"))

    def leaks(self) -> list[str]:
        """Which token was seen where."""
        everything = [*self.seen, *(("a command line", line) for line in self.command_lines)]
        return [
            f"{name} in {where}: {text[:2000]}"
            for name, token in self.tokens.items()
            for where, text in everything
            if any(token[at : at + _TELLTALE] in text for at in range(4, 4 + 43 - _TELLTALE))
        ]


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    """A watch over the machine's command lines for as long as the test lasts."""
    watch = Watch()
    looking = asyncio.create_task(watch.processes())
    yield watch
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


def token_of(kind: str, number: int) -> str:
    """A token that no relay has given."""
    return format_token(kind, bytes((number * 7 + at * 13) % 251 for at in range(32)))
