"""The console script ``kdispatch``, up to the import of the commands."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from kdispatch.machine.operating_system import HERE

__all__ = ["print_version", "run"]


def run() -> int:
    """Run the command in ``sys.argv`` and return its exit status."""
    _open_standard_streams()
    _set_encodings()
    arguments = sys.argv[1:]
    if arguments == ["--version"]:  # for scripts: importing the commands takes longer than the answer
        print_version()
        return 0
    from kdispatch.cli.commands import run_command  # noqa: PLC0415

    HERE.heed_interrupts()
    return run_command(arguments)


def print_version() -> None:
    """Print the version."""
    from kdispatch.cli.output import Output  # noqa: PLC0415 - all other commands import both anyway
    from kdispatch.settings import version  # noqa: PLC0415

    Output().result({}, quiet=[], plain=[f"kdispatch {version()}"])


def _open_standard_streams() -> None:
    """Open the null device for each standard stream that the caller closed, before another file gets its number.

    Otherwise a socket could get it, and output to standard error would go into a connection.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(opened, True)  # noqa: FBT003 - it takes no keywords
            stream: TextIO = os.fdopen(opened, "r" if number == 0 else "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _set_encodings() -> None:
    """Choose the encoding of pipes and files, and escape the characters that an encoding lacks, instead of failing.

    A console keeps its encoding, and so does every stream if PYTHONIOENCODING names one.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            kept = stream.isatty() or os.environ.get("PYTHONIOENCODING")
            stream.reconfigure(encoding=None if kept else HERE.pipe_encoding, errors="backslashreplace")
