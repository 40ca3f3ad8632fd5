"""The line by which another terminal uses the relay of ``kdispatch dev``."""

from __future__ import annotations

import shlex

import pytest

from kdispatch.cli import dev
from kdispatch.machine.operating_system import Posix, Windows


def test_a_posix_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell gets the values as they are, whatever characters they have."""
    monkeypatch.setattr(dev, "HERE", Posix())
    line = dev._exported(ONE="it's $HOME", TWO="http://127.0.0.1:1")
    assert shlex.split(line) == ["export", "ONE=it's $HOME", "TWO=http://127.0.0.1:1"]


def test_powershell(monkeypatch: pytest.MonkeyPatch) -> None:
    """PowerShell takes everything between single quotes as it is, and two of them as one."""
    monkeypatch.setattr(dev, "HERE", Windows())
    line = dev._exported(ONE=r"C:\\it's $HOME", TWO="http://127.0.0.1:1")
    assert line == r"$env:ONE = 'C:\\it''s $HOME'; $env:TWO = 'http://127.0.0.1:1'"
