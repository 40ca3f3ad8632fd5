"""Each guard is proved to fail: pytest runs faulty files with this suite's conftest, and a clean twin of each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow  # each test runs pytest

BLOCKING = """
import asyncio
import kdispatch.settings as product

async def test_it(tmp_path):
    (tmp_path / "file").write_text("x")
    {call}
"""
# The read is in a frame of the product, because only those count.
READ = "exec(compile('import time; time.sleep(0.01)', product.__file__, 'exec'))"
TASK = """
import asyncio

async def test_it():
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    {end}
"""
COROUTINE = """
import asyncio

async def test_it():
    held = [asyncio.sleep(0)]
    held.append(held)  # only the collector of cycles finds it
    {end}
"""
UNRAISABLE = """
class Broken:
    def __init__(self):
        self.me = self
    def __del__(self):
        {end}

async def test_it():
    Broken()
"""
LOGGED = """
import asyncio

async def fails():
    raise ZeroDivisionError("nobody looks")

async def test_it():
    task = asyncio.create_task(fails())
    await asyncio.sleep(0.01)
    {end}
    del task
"""
PROCESS = """
import os, subprocess, sys

async def test_it(tmp_path):
    script = tmp_path / "kdispatch"
    script.write_text("import asyncio, time\\nasync def main():\\n    {call}\\nasyncio.run(main())")
    subprocess.run([sys.executable, str(script)], capture_output=True)
"""
LEFT = """
import os, sys

def test_it():
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
    {end}
"""
IGNORED = """
import subprocess, sys

def test_it():
    script = "import signal; print(signal.getsignal(signal.SIGINT).__name__, signal.getsignal(signal.SIGHUP).name)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "default_int_handler SIG_DFL\\n"
"""
CASES = [
    pytest.param(
        BLOCKING.format(call=READ), BLOCKING.format(call="pass"), "Blocking call to time.sleep", id="blocking"
    ),
    pytest.param(TASK.format(end="pass"), TASK.format(end="task.cancel()"), "tasks are left", id="task"),
    pytest.param(COROUTINE.format(end="pass"), COROUTINE.format(end="await held[0]"), "never awaited", id="coroutine"),
    pytest.param(UNRAISABLE.format(end="1 / 0"), UNRAISABLE.format(end="pass"), "ZeroDivisionError", id="unraisable"),
    pytest.param(LOGGED.format(end="pass"), LOGGED.format(end="task.exception()"), "never retrieved", id="exception"),
    pytest.param(
        PROCESS.format(call="time.sleep(0.01)"),
        PROCESS.format(call="await asyncio.sleep(0.01)"),
        "Blocking call to time.sleep",
        id="process",
    ),
    pytest.param(
        LEFT.format(end="pass"),
        LEFT.format(end="os.kill(pid, 15), os.waitpid(pid, 0)"),
        "test_file.py::test_it (call) left process",
        id="left",
    ),
]


def _pytest(folder: Path, text: str, *workers: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_file.py").write_text(text)
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    return subprocess.run(
        [*before, sys.executable, "-m", "pytest", *settings, *workers, "test_file.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_what_the_run_ignores_its_processes_heed(workers: list[str], tmp_path: Path) -> None:
    """In a script's background, or under nohup, processes of tests get signals as in a foreground."""
    ended = _pytest(tmp_path, IGNORED, *workers, before=("sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh"))
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "xdist"])
@pytest.mark.parametrize(("planted", "clean", "reason"), CASES)
def test_each_guard_fails_what_is_planted(
    planted: str, clean: str, reason: str, workers: list[str], tmp_path: Path
) -> None:
    """A planted fault fails its run and shows the reason, and the same file without it passes."""
    for text, status in ((planted, 1), (clean, 0)):
        ended = _pytest(tmp_path, text, *workers)
        assert ended.returncode == status, ended.stdout + ended.stderr
        assert (reason in ended.stdout) == bool(status), ended.stdout
