from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.tools import check_wheel


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    """The wheel contains every file of the three packages, the licence and both entry points, and nothing else."""
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(tmp_path),
            str(check_wheel.ROOT),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0 and "hatchling" in built.stderr:
        pytest.skip("the wheel can't be built: pip can't get hatchling here")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("kdispatch-*.whl")
    assert check_wheel.problems(wheel) == []


def test_problems_are_found(tmp_path: Path) -> None:
    """A wheel with a missing or an additional file fails the check."""
    wheel = tmp_path / "kdispatch-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tests/stray.py", "")
        archive.writestr("kdispatch-0.dist-info/entry_points.txt", "[console_scripts]\n")
        archive.writestr("kdispatch-0.dist-info/METADATA", "Name: kdispatch\n")
    found = check_wheel.problems(wheel)
    assert "tests/stray.py does not belong there" in found
    assert "kdispatch/cli/main.py is missing" in found
    assert "the licence is missing" in found
