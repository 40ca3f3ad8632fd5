"""The console script ``kdispatch``: what it does before any command is imported."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

__all__ = ["print_version", "run"]


def run() -> int:
    """Run the command of ``sys.argv`` and return its exit status."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding lacks is escaped, instead of ending the command.
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    if arguments == ["--version"]:  # asked for by scripts: importing the commands takes longer than the answer
        print_version()
        return 0
    from kdispatch.cli.commands import run_command  # noqa: PLC0415
    from kdispatch.machine.operating_system import HERE  # noqa: PLC0415

    HERE.heed_interrupts()
    return run_command(arguments)


def print_version() -> None:
    """Say which version this is."""
    from kdispatch.cli.output import Output  # noqa: PLC0415 - both are a part of every other command anyway
    from kdispatch.settings import version  # noqa: PLC0415

    Output().result({}, quiet=[], plain=[f"kdispatch {version()}"])


def _open_standard_streams() -> None:
    """Open the null device for each standard stream that the caller closed, before another file gets its number.

    A socket would, and whatever writes to standard error would write into a connection.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(opened, True)  # noqa: FBT003 - it takes no keywords
            stream: TextIO = os.fdopen(opened, "r" if number == 0 else "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
