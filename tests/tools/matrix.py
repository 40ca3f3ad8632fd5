"""Run the tests on each installed Python, with and without uvloop; print one table.

Usage: python -m tests.tools.matrix [--others] [--quick]

--others leaves out the Python that runs this. --quick runs the tests of the protocol, its driver, the agent and the
relay, without the slow ones. Each Python has its own environment, such as ``.venv-3.12``. A missing Python is a SKIP
line.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
VERSIONS: Final = ("3.11", "3.12", "3.13")
LOOPS: Final = ("asyncio", "uvloop")
#: Tests that depend on Python's loop, sockets and parsers. The others do not depend on it, or are slow.
QUICK: Final = ("tests/core", "tests/aio", "tests/net", "tests/agent", "tests/relay")


class Row(NamedTuple):
    version: str
    loop: str
    result: str
    seconds: float
    outcome: str


def main() -> int:
    """Run the tests on each installed Python in turn; returns 1 if any failed."""
    own = ".".join(map(str, sys.version_info[:2]))
    versions = [version for version in VERSIONS if "--others" not in sys.argv or version != own]
    which = ["-m", "not accept and not slow", *QUICK] if "--quick" in sys.argv else ["-m", "not accept", "tests"]
    rows = []
    for version in versions:
        python = find(version)
        if python is None:
            rows.append(Row(version, "-", "SKIP", 0.0, "none that works is in pyenv or on PATH"))
        elif failure := prepare(python, version):
            rows.append(Row(version, "-", "FAIL", 0.0, failure))
        else:
            rows += [run(version, loop, which) for loop in LOOPS]
    print(f"\n{'Python':8}{'loop':10}{'result':8}{'time':>6}  outcome")
    for row in rows:
        print(f"{row.version:8}{row.loop:10}{row.result:8}{row.seconds:4.0f} s  {row.outcome}")
    for row in rows:
        if row.result == "SKIP":
            print(f"SKIP: Python {row.version}: {row.outcome}")
    return int(any(row.result == "FAIL" for row in rows))


def find(version: str) -> Path | None:
    """Return a working Python of this version: pyenv's newest, or the one on PATH (pyenv's shims may not work)."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    # Releases only, not 3.13.0rc1 or 3.13t.
    released = [
        path for path in versions.glob(f"{version}.*/bin/python") if path.parts[-3].rpartition(".")[2].isdigit()
    ]
    found = sorted(released, key=lambda path: int(path.parts[-3].rpartition(".")[2]))
    if on_path := shutil.which(f"python{version}"):
        found.insert(0, Path(on_path))
    for python in reversed(found):
        if subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode == 0:
            return python
    return None


def prepare(python: Path, version: str) -> str:
    """Create or update the environment; returns the reason if that failed."""
    venv = ROOT / f".venv-{version}"
    install: list[str | Path] = [
        venv / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    make: list[str | Path] = [python, "-m", "venv", venv]
    for command in (make, [*install, "--editable", ".[dev,fast]"]):
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if ended.returncode:
            return (ended.stderr.strip() or "no reason given").splitlines()[-1]
    return ""


def run(version: str, loop: str, which: list[str]) -> Row:
    """Run the tests once, with short property tests."""
    print(f"\n=== Python {version}, {loop}", flush=True)
    python = ROOT / f".venv-{version}" / "bin" / "python"
    began = time.monotonic()
    ended = subprocess.run(
        [python, "-m", "pytest", "-n", "auto", "--dist", "worksteal", *which],
        cwd=ROOT,
        env={**os.environ, "KDISPATCH_QUICK": "1", "KDISPATCH_TEST_LOOP": loop},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode:
        print(ended.stdout)
    lines = ended.stdout.strip().splitlines()
    outcome = re.sub(r" in [\d.]+s.*", "", lines[-1]) if lines else "it printed nothing"
    return Row(version, loop, "FAIL" if ended.returncode else "ok", time.monotonic() - began, outcome)


if __name__ == "__main__":
    sys.exit(main())
