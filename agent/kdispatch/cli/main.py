"""The console script ``kdispatch``: what it does before any command is imported."""

from __future__ import annotations

import io
import sys

__all__ = ["print_version", "run"]


def run() -> int:
    """Run the command of ``sys.argv`` and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding lacks is escaped, instead of ending the command.
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    if arguments == ["--version"]:  # asked for by scripts: importing the commands takes longer than the answer
        print_version()
        return 0
    from kdispatch.cli.commands import run_command  # noqa: PLC0415
    from kdispatch.operating_system import HERE  # noqa: PLC0415

    HERE.heed_interrupts()
    return run_command(arguments)


def print_version() -> None:
    """Say which version this is."""
    from kdispatch.cli.output import Output  # noqa: PLC0415 - both are a part of every other command anyway
    from kdispatch.settings import version  # noqa: PLC0415

    Output().result({}, quiet=[], plain=[f"kdispatch {version()}"])
