"""No process of a test outlives the run: leftovers are ended, reported with their test, and fail the run.

Each process that the run's tests start, on every worker of xdist, has the run's mark in its environment. The
controller searches for the mark after the workers and the session's fixtures. Without ``/proc`` it finds nothing.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["RUN", "Survivor", "end_survivors", "mark_run"]

#: The variable with the run's mark.
RUN: Final = "KDISPATCH_TEST_RUN"
_TEST: Final = "PYTEST_CURRENT_TEST"  # set by pytest to the current test; xdist's workers themselves start without it
_ENDING: Final = 3.0  # seconds for processes to end, such as those of a relay that lost its supervisor
_LOOK: Final = 0.05  # seconds between two checks


class Survivor(NamedTuple):
    """A process that a test left behind, and the test."""

    pid: int
    command: str
    test: str


def mark_run() -> str:
    """Put a new mark into the environment of this process, which its children inherit; returns the mark."""
    os.environ[RUN] = uuid.uuid4().hex
    return os.environ[RUN]


def end_survivors(mark: str) -> list[Survivor]:
    """End the run's processes that do not end by themselves, and return them."""
    left = _after_a_while(mark)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for survivor in _after_a_while(mark) if number is signal.SIGKILL else left:
            try:
                os.kill(survivor.pid, number)
            except ProcessLookupError:
                continue
    return left


def _after_a_while(mark: str) -> list[Survivor]:
    """Return the processes left after their time to end; returns early when none is left."""
    deadline = time.monotonic() + _ENDING
    while (left := _survivors(mark)) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return left


def _survivors(mark: str) -> list[Survivor]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes()
        except OSError:  # ended, or another user's
            continue
        values = dict(line.partition("=")[::2] for line in environment.decode(errors="replace").split("\0"))
        if values.get(RUN) == mark and _TEST in values and int(folder.name) != os.getpid():
            text = command.decode(errors="replace").replace("\0", " ").strip()
            found.append(Survivor(int(folder.name), text, values[_TEST]))
    return found
