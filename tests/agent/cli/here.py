"""A command in a thread of this process, with the output and status that the console script would have.

It takes a twentieth of a process's CPU time. It covers commands that run to their end and read no input. Signals,
input, terminals, descriptors and agents need a process.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from kdispatch.cli.commands import run_command
from kdispatch.machine.operating_system import HERE

__all__ = ["run_here"]

_ONE: Final = threading.Lock()  # the environment and the standard streams are the process's


async def run_here(
    arguments: Sequence[str], environment: Mapping[str, str], *, folder: Path | None = None
) -> tuple[int, str, str]:
    """Run ``kdispatch`` with these arguments and this whole environment; returns status and both outputs.

    The loop of the caller goes on meanwhile. ``folder`` is the command's current directory.
    """
    return await asyncio.to_thread(_run, list(arguments), environment, folder)


def _run(arguments: list[str], environment: Mapping[str, str], folder: Path | None) -> tuple[int, str, str]:
    standard = {
        "stdin": io.TextIOWrapper(io.BytesIO(), encoding="utf-8"),
        "stdout": io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace"),
        "stderr": io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace"),
    }
    with _ONE, pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment.keys():
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        for name, stream in standard.items():
            patch.setattr(sys, name, stream)
        if folder is not None:
            patch.chdir(folder)
        patch.setitem(sys.modules, "rich", None)  # as the command leaves it
        patch.setattr(type(HERE), "on_stop", lambda *_: None)  # only a main thread handles signals
        try:
            status = run_command(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = (_written(standard[name]) for name in ("stdout", "stderr"))
    return status, out, err


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
