"""A person at a terminal: a separate home, commands as processes, their output and exit status."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.agent.cli.here import run_here

__all__ = ["KDISPATCH", "Ended", "Person"]

KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
_PATIENCE: Final = 60.0  # seconds, so that a command that hangs fails its test and not the run


@dataclass(frozen=True)
class Ended:
    """The result of a command."""

    command: str
    status: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.out}{self.err}(exit {self.status}, {self.seconds:.1f} s)"


class Person:
    """A person with an empty home; ``relay`` is the value of KDISPATCH_RELAY, if any."""

    def __init__(self, home: Path, relay: str | None = None) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.config = home / "config"
        self.environment: dict[str, str] = {
            "PATH": f"{Path(KDISPATCH).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "KDISPATCH_CONFIG_DIR": str(self.config),
            "KDISPATCH_STATE_DIR": str(home / "state"),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "LANG": "C.UTF-8",
        }
        if relay is not None:
            self.environment["KDISPATCH_RELAY"] = relay

    async def runs_here(self, *arguments: str) -> Ended:
        """The same as :meth:`runs` in a thread of this process, for commands that read no input."""
        began = time.monotonic()
        status, out, err = await run_here(arguments, self.environment, folder=self.home)
        return Ended(" ".join(("kdispatch", *arguments)), status, out, err, time.monotonic() - began)

    async def runs(
        self, *arguments: str, given: str = "", environment: Mapping[str, str] | None = None, wait: float = _PATIENCE
    ) -> Ended:
        """Run ``kdispatch`` with these arguments to its end; ``given`` is its standard input."""
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            KDISPATCH,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.home,
            env={**self.environment, **(environment or {})},
        )
        try:
            async with asyncio.timeout(wait):
                out, err = await process.communicate(given.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        command = " ".join(("kdispatch", *arguments))
        return Ended(
            command,
            process.returncode,
            out.decode(errors="replace"),
            err.decode(errors="replace"),
            time.monotonic() - began,
        )
