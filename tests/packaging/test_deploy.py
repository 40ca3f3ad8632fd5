"""The files for operators, checked by the programs that read them."""

from __future__ import annotations

import os
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
    """The path of an optional program; skips the test if it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_flake_parses(tmp_path: Path) -> None:
    """Nix can parse flake.nix (an evaluation would fetch nixpkgs from the network)."""
    nix = program("nix-instantiate")
    # A user other than root may not write to Nix's own folder.
    environment = {**os.environ, "NIX_STATE_DIR": str(tmp_path)}
    command = [nix, "--parse", str(ROOT / "flake.nix")]
    parsed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert parsed.returncode == 0, parsed.stderr
    assert "buildPythonApplication" in parsed.stdout


def test_flake_has_the_requirements() -> None:
    """The flake names the packages that the project requires, for the agent and for the relay."""
    project = (ROOT / "pyproject.toml").read_text()
    required = re.search(r"^dependencies = \[\n(.*?)^\]\n.*?^relay = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert required is not None
    names = set(re.findall(r'^ *"([a-z-]+)', "".join(required.groups()), re.MULTILINE))
    # sqlalchemy[asyncio] needs greenlet, which nixpkgs lists separately.
    assert set(re.findall(r"\bps\.([\w-]+)", (ROOT / "flake.nix").read_text())) == names | {"greenlet"}


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_commands_that_exist(unit: Path) -> None:
    """The command has every flag in the unit, and the relay has every setting in it."""
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
    """systemd reports no problem in the relay's units and its socket."""
    analyze = program("systemd-analyze")
    for file in (ROOT / "deploy").glob("kdispatch-relay*"):
        # Give a template an instance, and each unit an existing program.
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
    """systemd's stop timeout exceeds the relay's drain time, and only units with a fixed user share a port."""
    for unit in RELAYS:
        text = unit.read_text()
        drain, patience = (
            float(re.findall(rf"^{name}=(\d+)", text, re.MULTILINE)[0])
            for name in ("Environment=KDISPATCH_SERVE_DRAIN_TIME", "TimeoutStopSec")
        )
        assert patience >= drain + 10
        assert ("KDISPATCH_SERVE_REUSE_PORT=1" in text) == ("@" in unit.name) == ("\nUser=kdispatch\n" in text)
