"""``relay migrate`` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guards.environment import inherited

COMMAND = [sys.executable, "-W", "error", "-c", "from kdispatch_relay.cli import app; app()", "migrate"]
pytestmark = pytest.mark.slow


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    made = {**inherited(), "XDG_DATA_HOME": str(folder)}
    return subprocess.Popen([*COMMAND, *arguments], env=made, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def migrated(folder: Path, *arguments: str) -> tuple[int, str, str]:
    with started(folder, *arguments) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def test_migrate(tmp_path: Path) -> None:
    """An empty database is brought up to date, a current one stays, and each output form says so in one line."""
    file = str(tmp_path / "relay.db")
    status, out, err = migrated(tmp_path, "--database", file)
    assert (status, out, err) == (0, "The database was brought from empty to revision 0005.\n", "")
    status, out, _ = migrated(tmp_path, "--database", file)
    assert (status, out) == (0, "The database is up to date, at revision 0005.\n")
    assert migrated(tmp_path, "--database", file, "--quiet") == (0, "0005\n", "")
    status, out, err = migrated(tmp_path, "--database", file, "--json")
    assert json.loads(out) == {"schema": 1, "from": "0005", "to": "0005", "changed": False}
    assert (status, err) == (0, "")


def test_several_at_once(tmp_path: Path) -> None:
    """Of several at once on one database exactly one changes it, and none fails."""
    processes = [started(tmp_path, "--database", str(tmp_path / "relay.db"), "--json") for _ in range(3)]
    told = []
    for process in processes:
        with process:
            out, err = process.communicate(timeout=30)
            assert (process.returncode, err) == (0, "")
            told.append(json.loads(out))
    assert sorted(answer["changed"] for answer in told) == [False, False, True]
    assert {answer["to"] for answer in told} == {"0005"}


def test_errors(tmp_path: Path) -> None:
    """An invalid or unusable database is reported in three lines or as JSON, with the code's exit status."""
    status, out, err = migrated(tmp_path, "--database", "mysql://u:canary@h/db")
    first, where, hint = err.splitlines()
    assert (status, out) == (2, "") and "canary" not in err
    assert first.startswith("kdispatch: ") and first.endswith("[bad_request]")
    assert where == "  where: you" and hint.startswith("  try:   ")
    (tmp_path / "folder").mkdir()
    status, out, err = migrated(tmp_path, "--database", str(tmp_path / "folder"), "--json")
    error = json.loads(err)
    assert (status, out, error["schema"], error["error"]["code"]) == (1, "", 1, "storage_unavailable")
    assert error["error"]["text"] == f"The database can't be opened: {tmp_path / 'folder'}: is a directory."
