"""The files for operators, looked at by the programs that will read them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.demo.processes import KDISPATCH

ROOT: Final = Path(__file__).parents[2]
UNITS: Final = sorted((ROOT / "deploy").glob("*.service"))
RELAYS: Final = [unit for unit in UNITS if "relay" in unit.name]


def program(name: str) -> str:
    """The path of a program that not every machine has; skips where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_flake_parses() -> None:
    """Nix can read flake.nix (evaluating it would take nixpkgs from the network)."""
    nix = program("nix-instantiate")
    parsed = subprocess.run([nix, "--parse", str(ROOT / "flake.nix")], capture_output=True, text=True, check=False)
    assert parsed.returncode == 0, parsed.stderr
    assert "buildPythonApplication" in parsed.stdout


def test_flake_has_the_requirements() -> None:
    """The flake names the packages that the project requires, for the agent and for the relay."""
    project = (ROOT / "pyproject.toml").read_text()
    required = re.search(r"^dependencies = \[\n(.*?)^\]\n.*?^relay = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert required is not None
    names = set(re.findall(r'^ *"([a-z-]+)', "".join(required.groups()), re.MULTILINE))
    # sqlalchemy[asyncio] is greenlet, which nixpkgs lists apart.
    assert set(re.findall(r"\bps\.([\w-]+)", (ROOT / "flake.nix").read_text())) == names | {"greenlet"}


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_commands_that_exist(unit: Path) -> None:
    """Each flag of a unit's command is one that the command has, and each setting one that the relay has."""
    (command,) = re.findall(r"^ExecStart=(.+)$", unit.read_text(), re.MULTILINE)
    _, *words = shlex.split(command)
    shown = subprocess.run([KDISPATCH, *words[:2], "--help"], capture_output=True, text=True, check=True).stdout
    settings = re.findall(r"^Environment=(\w+)=", unit.read_text(), re.MULTILINE)
    for needed in [*settings, *(word for word in words if word.startswith("--"))]:
        assert needed in shown


@pytest.mark.slow
@pytest.mark.parametrize("unit", RELAYS, ids=lambda unit: unit.name)
def test_relay_unit_is_hardened(unit: Path) -> None:
    """systemd rates the relay's units 2.0 or better (0 is best, 10 is a service without any protection)."""
    analyze = program("systemd-analyze")
    rated = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "nrecognized option" in rated.stderr:
        pytest.skip("this systemd-analyze is too old to rate a file")
    assert rated.returncode == 0, rated.stdout[-300:] + rated.stderr


@pytest.mark.slow
def test_units_are_understood(tmp_path: Path) -> None:
    """systemd has nothing to say against any line of the relay's units, nor of its socket."""
    analyze = program("systemd-analyze")
    for file in (ROOT / "deploy").glob("kdispatch-relay*"):
        # An instance of a template, and a program that is there.
        name = file.name.replace("@.", "@a.")
        (tmp_path / name).write_text(re.sub(r"/\S+/kdispatch(?= )", KDISPATCH, file.read_text()))
    for unit in sorted(tmp_path.iterdir()):
        verified = subprocess.run(
            [analyze, "verify", "--man=no", str(unit)],
            env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (verified.returncode, verified.stderr) == (0, ""), unit.name


def test_a_relay_has_time_to_drain() -> None:
    """systemd waits longer for a relay than that for its agents, and lets two relays share a port only as one user."""
    for unit in RELAYS:
        text = unit.read_text()
        drain, patience = (
            float(re.findall(rf"^{name}=(\d+)", text, re.MULTILINE)[0])
            for name in ("Environment=KDISPATCH_SERVE_DRAIN_TIME", "TimeoutStopSec")
        )
        assert patience >= drain + 10
        assert ("KDISPATCH_SERVE_REUSE_PORT=1" in text) == ("@" in unit.name) == ("\nUser=kdispatch\n" in text)
