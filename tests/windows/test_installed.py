"""kdispatch as pip installs it under Wine, in an environment of its own: ``kdispatch.exe``, and jobs.

The other tests here run ``python -m kdispatch``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from kdispatch.settings import version
from tests.net.harness import Relay
from tests.net.tcp import echo, service
from tests.windows.environment import ROOT, WinePython, windows_path
from tests.windows.running import WindowsNetwork, echoes
from tests.windows.test_commands import test_ctrl_c, test_stop_at_once, test_the_first_tunnel

__all__ = ["test_ctrl_c", "test_stop_at_once", "test_the_first_tunnel"]

pytestmark = pytest.mark.slow

_ENOUGH: Final = 120.0  # seconds for pip; it takes ten on an idle machine
_IN_JOB: Final = Path(__file__).with_name("in_job.py")
#: Limits of a job: all its processes end with it, processes may leave it if they ask, all new ones leave it.
_KILLS: Final = 0x2000
_LETS_GO: Final = 0x800
_LETS_ALL_GO: Final = 0x1000


class Installed(WindowsNetwork):
    """Agents of the ``kdispatch.exe`` in an environment; they find nothing of the checkout."""

    def __init__(self, folder: Path, relay: Relay, windows: WinePython, place: Path) -> None:
        super().__init__(folder, relay.url, relay.token, windows)
        self.environment["PYTHONPATH"] = ""
        self.place = place / "Scripts"

    def _kdispatch(self, *arguments: str) -> list[str]:
        return ["wine", str(self.place / "kdispatch.exe"), *arguments]


@pytest.fixture(scope="session")
def place(wine: WinePython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with kdispatch, which pip installed from its wheel."""
    folder = tmp_path_factory.mktemp("installed")
    place = folder / "an environment"
    python = wine.folder / "python"
    # With all of the interpreter's files, which the embeddable package has beside python.exe.
    shutil.copytree(python, place / "Scripts", ignore=shutil.ignore_patterns("Lib"))
    (place / "pyvenv.cfg").write_text(f"home = {windows_path(python)}\n")
    built = _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("the wheel can't be built: pip can't get hatchling here")
    assert built.returncode == 0, built.stderr
    [wheel] = folder.glob("kdispatch-*.whl")
    (folder / "only pip").mkdir()
    [pip] = {Path(entry) / "pip" for entry in sys.path if (Path(entry) / "pip" / "__main__.py").exists()}
    (folder / "only pip" / "pip").symlink_to(pip)
    install = ("install", "--quiet", "--no-index", "--no-deps", "--no-compile", windows_path(wheel))
    only_pip = {**wine.variables, "PYTHONPATH": windows_path(folder / "only pip")}
    done = _run("wine", str(place / "Scripts" / "python.exe"), "-m", "pip", *install, **only_pip)
    assert done.returncode == 0, done.stderr
    packages = place / "Lib" / "site-packages"
    (packages / "dependencies.pth").write_text(windows_path(python / packages.relative_to(place)))
    return place


def _run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**os.environ, **variables}, input="", capture_output=True, text=True, timeout=_ENOUGH, check=False
    )


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path, wine: WinePython, place: Path) -> Iterator[Installed]:
    """Agents of the installed kdispatch."""
    own = "own_relay" in request.fixturenames
    network = Installed(tmp_path, request.getfixturevalue("own_relay" if own else "shared_relay"), wine, place)
    try:
        yield network
    finally:
        network.stop()


async def test_what_runs(network: Installed) -> None:
    """The program is pip's, it runs the installed files, and a wrong command has the status of an error."""
    assert (await network.run("--version")).out == f"kdispatch {version()}\n"
    files = "import kdispatch, sys; print(kdispatch.__file__, sys.executable)"
    python = str(network.place / "python.exe")
    told = (await network.start_wine("python", python, "-c", files).done()).out
    for name in ("Lib\\site-packages\\kdispatch\\__init__.py", "Scripts\\python.exe"):
        assert windows_path(network.place.parent) + "\\" + name in told
    assert (await network.run("frobnicate")).status == 2


@pytest.mark.parametrize(
    ("limits", "outlives"),
    [(_KILLS | _LETS_GO, True), (_KILLS | _LETS_ALL_GO, True), (_KILLS, False)],
    ids=["lets-go", "lets-all-go", "lets-none-go"],
)
async def test_a_job(network: Installed, limits: int, outlives: bool) -> None:
    """An agent in the background leaves its job if that lets it, and starts in any case."""
    name = await network.service()
    async with service(echo) as running, asyncio.timeout(120):
        given = ("agent", "host", name, "--port", str(running.port), "--detach", "--json")
        command = (windows_path(network.place / "kdispatch.exe"), *given)
        python = str(network.place / "python.exe")
        job = network.start_wine("job", python, windows_path(_IN_JOB), f"{limits:x}", *command)
        agent = json.loads((await job.says(r"\{.*\}\n"))[0])["id"]
        _, port = await network.connect(name)
        await echoes(port)
        assert (await job.done("\n")).status == 0
        told = json.loads((await network.run("status", "--json")).out)["agents"]
        assert (agent in [one["id"] for one in told]) == outlives
        if outlives:
            await echoes(port)
            assert (await network.run("agent", "stop", agent)).status == 0
