"""The unit tests of core and agent, run by Python for Windows."""

from __future__ import annotations

import re
import subprocess
from typing import Final

import pytest

from tests.guards.environment import inherited
from tests.windows.environment import ROOT, WinePython, windows_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Files that need a module which Windows' Python lacks; each has its reason.
_POSIX: Final = {
    "tests/agent/cli": "most start commands as processes with terminals; test_commands has them",
    "tests/agent/test_limits.py": "limits of a process (resource)",
    "tests/agent/test_places.py": "locks of other machines and boots (fcntl)",
    "tests/core/test_mistakes.py": "planted mistakes, which say nothing of a system",
}
#: asyncio leaves the socket with which Windows' loop was about to accept a connection when its server was closed.
_ASYNCIO: Final = "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"


@pytest.mark.parametrize(("part", "at_least"), [("core", 1900), ("agent", 400)])
def test_units(wine: WinePython, part: str, at_least: int) -> None:
    """The tests that take no time pass on Windows, too."""
    left_out = [argument for path in _POSIX if path.startswith(f"tests/{part}") for argument in ("--ignore", path)]
    # The guards of tests/conftest.py know Linux only.
    chosen = ["--confcutdir", f"tests/{part}", "-m", "not slow and not accept", *left_out, f"tests/{part}"]
    environment = {**wine.variables, "PYTHONPATH": f"{wine.variables['PYTHONPATH']};{windows_path(ROOT)}"}
    done = subprocess.run(
        wine.command("-m", "pytest", "-W", _ASYNCIO, "--tb", "short", *chosen),
        cwd=ROOT,
        env={**inherited(), **environment, "KDISPATCH_QUICK": "1"},
        input=b"",
        capture_output=True,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    passed = re.search(r"(\d+) passed", said)
    assert done.returncode == 0 and passed is not None and int(passed[1]) >= at_least, said[-20_000:]
