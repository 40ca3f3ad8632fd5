"""Text in pipes and files: its encoding on Windows, where the system's default lacks most characters."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from kdispatch.cli import main
from kdispatch.machine.operating_system import Posix, Windows
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import load_settings, remember_relay


class _Console(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("system", "where", "asked", "encoding"),
    [
        (Windows(), io.BytesIO, "", "utf-8"),
        (Windows(), io.BytesIO, "cp1252", "cp1252"),
        (Windows(), _Console, "", "cp1252"),
        (Posix(), io.BytesIO, "", "cp1252"),
    ],
    ids=["windows", "windows-asked", "windows-console", "posix"],
)
def test_output(
    system: Posix | Windows, where: type[io.BytesIO], asked: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a pipe gets UTF-8 and not the code page, unless PYTHONIOENCODING is set; a console keeps its own."""
    written = where()
    monkeypatch.setattr(main, "HERE", system)
    monkeypatch.setattr(system, "heed_interrupts", lambda: None)
    monkeypatch.setenv("PYTHONIOENCODING", asked)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, "cp1252"))
    monkeypatch.setattr(sys, "argv", ["kdispatch", "frobnicaté-Ж"])
    monkeypatch.setitem(sys.modules, "rich", None)  # as the command leaves it
    assert main.run() == 2
    assert "frobnicaté-Ж".encode(encoding, "backslashreplace") in written.getvalue()


def test_a_file_with_a_mark(own_configuration: Path) -> None:
    """A byte order mark at the start of config.toml, as Windows PowerShell writes it, does no harm."""
    own_configuration.mkdir()
    path = own_configuration / "config.toml"
    path.write_bytes("# für mich\r\ngrace = 7.0\r\n".encode("utf-8-sig"))
    assert load_settings().grace == 7
    remember_relay(RelayUrl.parse("https://relay.example"))
    assert (load_settings().grace, load_settings().relay) == (7, "https://relay.example")
    assert "# für mich" in path.read_text("utf-8")
