"""The search for the Pythons that ``make matrix`` runs on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools import matrix

Place = Callable[[str, int], Path]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Create a Python at a path that ends with a given status; no other Python can be found."""
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))

    def put(name: str, status: int) -> Path:
        python = tmp_path / name
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f"#!/bin/sh\nexit {status}\n")
        python.chmod(0o755)
        return python

    return put


def test_the_newest_release_that_works(place: Place) -> None:
    """pyenv's newest working release is used, in numeric order, and without one the Python on PATH."""
    on_path = place("path/python3.12", 0)
    for name, status in {"3.12.11": 1, "3.12.12rc1": 0, "3.12-dev": 0, "3.1.20": 0, "3.13.0": 0}.items():
        place(f"versions/{name}/bin/python", status)
    assert matrix.find("3.12") == on_path
    place("versions/3.12.9/bin/python", 0)
    newest = place("versions/3.12.10/bin/python", 0)
    assert matrix.find("3.12") == newest


def test_a_missing_python_is_a_skip_line(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version without a working Python (such as pyenv's shims) is a SKIP line, and not a failure."""
    others = [version for version in matrix.VERSIONS if version != ".".join(map(str, sys.version_info[:2]))]
    place(f"path/python{others[0]}", 127)
    monkeypatch.setattr(sys, "argv", ["matrix", "--others", "--quick"])
    assert matrix.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("SKIP: ")] == [
        f"SKIP: Python {version}: none that works is in pyenv or on PATH" for version in others
    ]
