"""No process that a test started outlives the run: the ones that do are ended, named with their test, and fail it.

The run's mark is in the environment of each process that its tests start, on every worker of xdist. The controller
looks for it after the workers and the session's fixtures have ended. ``/proc`` is needed: elsewhere nothing is found.
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
_TEST: Final = "PYTEST_CURRENT_TEST"  # pytest's own, with the test that runs; workers of xdist do not have it
_ENDING: Final = 3.0  # seconds for processes that were told to end, such as a relay's that lost its supervisor
_LOOK: Final = 0.05  # seconds between two looks at them


class Survivor(NamedTuple):
    """A process that a test left, and the test."""

    pid: int
    command: str
    test: str


def mark_run() -> str:
    """A new mark, in the environment of this process and so of those that it starts."""
    os.environ[RUN] = uuid.uuid4().hex
    return os.environ[RUN]


def end_survivors(mark: str) -> list[Survivor]:
    """The processes of the run that do not end by themselves; they are ended before this returns."""
    left = _after_a_while(mark)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for survivor in _after_a_while(mark) if number is signal.SIGKILL else left:
            try:
                os.kill(survivor.pid, number)
            except ProcessLookupError:
                continue
    return left


def _after_a_while(mark: str) -> list[Survivor]:
    """The processes that are still there when their time to end is over; none as soon as there is none."""
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
        except OSError:  # it has just ended, or is another user's
            continue
        values = dict(line.partition("=")[::2] for line in environment.decode(errors="replace").split("\0"))
        if values.get(RUN) == mark and _TEST in values and int(folder.name) != os.getpid():
            text = command.decode(errors="replace").replace("\0", " ").strip()
            found.append(Survivor(int(folder.name), text, values[_TEST]))
    return found
