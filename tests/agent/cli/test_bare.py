"""Commands on a machine without what most have: a home, a current directory, open descriptors, locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import platformdirs
import pytest

from kdispatch import settings
from kdispatch.cli.commands import run_command
from kdispatch.host import LocalPort
from kdispatch.machine.operating_system import HERE
from kdispatch.machine.private_files import make_private, private_lock
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError
from tests.guards.environment import inherited

_KDISPATCH = str(Path(sys.executable).with_name("kdispatch"))


@pytest.fixture(autouse=True)
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command leaves it; restored for later tests."""
    monkeypatch.setitem(sys.modules, "rich", None)


def _environment(folder: Path) -> dict[str, str]:
    return {**inherited(), "KDISPATCH_CONFIG_DIR": str(folder / "config"), "KDISPATCH_STATE_DIR": str(folder / "state")}


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "status"),
    [("status", 0), ("agent stop nobody", 3), ("service show ann/web --relay http://127.0.0.1:1", 6)],
)
def test_closed_descriptors(closed: str, command: str, status: int, tmp_path: Path) -> None:
    """A command with closed standard streams works as with open ones, on any event loop."""
    line = f"{_KDISPATCH} {command} {closed}"
    ended = subprocess.run(["sh", "-c", line], env=_environment(tmp_path), capture_output=True, text=True, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr, "defect" in ended.stderr) == (status, False, False)


@pytest.mark.slow
def test_what_takes_the_number_of_a_closed_descriptor() -> None:
    """The null device gets its number, before any file or socket can, and children inherit it."""
    script = (
        "import os, sys\nfrom kdispatch.cli.main import _open_standard_streams\n_open_standard_streams()\n"
        "names = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)]\n"
        "said = [os.get_inheritable(n) for n in range(3)]\nsys.stderr.write('x')\nprint('y')\n"
        "open(sys.argv[1], 'w').write(repr((names, said)))"
    )
    if not Path("/proc/self/fd").exists():
        pytest.skip("this system has no /proc")
    reader, writer = os.pipe()
    line = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", sys.executable, "-c", script, f"/dev/fd/{writer}"]
    subprocess.run(line, pass_fds=[writer], check=True)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.read() == repr((["/dev/null"] * 3, [True] * 3))


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without HOME and a passwd entry, each directory is an error that says which variable to set."""
    for name in ("HOME", "KDISPATCH_CONFIG_DIR", "KDISPATCH_STATE_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for directory, variable in (
        (settings.config_directory, "KDISPATCH_CONFIG_DIR"),
        (settings.state_directory, "KDISPATCH_STATE_DIR"),
    ):
        with pytest.raises(SetupError, match="no home directory") as caught:
            directory()
        assert variable in caught.value.hint
    assert run_command(["whoami"]) == 2


@pytest.mark.parametrize("error", [OSError(2, "The system cannot find the file specified"), ValueError("NULL")])
def test_a_user_without_a_profile(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Where Windows has no folder for the user, the error says so, and which variable to set."""

    def fail(*_: object, **__: object) -> str:
        raise error

    for kind, variable in (("config", "KDISPATCH_CONFIG_DIR"), ("state", "KDISPATCH_STATE_DIR")):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(platformdirs, f"user_{kind}_dir", fail)
        with pytest.raises(SetupError, match="names no folder") as caught:
            getattr(settings, f"{kind}_directory")()
        assert variable in caught.value.hint
    assert run_command(["whoami"]) == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int) -> None:
    """If files cannot be locked, the error says so, and which variable names another directory."""

    def refuse(_self: object, _descriptor: int) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(type(HERE), "try_lock", refuse)
    with pytest.raises(SetupError, match="has no locks") as caught, private_lock(tmp_path):
        pass
    assert caught.value.hint == "Name another directory in KDISPATCH_CONFIG_DIR."


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    """A file where a directory is needed is reported as such."""
    (tmp_path / "home").touch()
    with pytest.raises(SetupError, match=r"Not a directory|File exists"):
        make_private(tmp_path / "home" / "state")
    with pytest.raises(SetupError, match="Not a directory"):
        make_private(tmp_path / "home")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_no_directory_is_open_to_others(tmp_path: Path) -> None:
    """With a umask of 0, no directory that is created on the way is accessible to others."""
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")} == {0o700}


@pytest.mark.parametrize(
    "line",
    [
        ["agent", "host", "ann/web", "--port", "80", "--address", ""],
        ["agent", "connect", "ann/web", "--address", "  "],
        ["agent", "connect", "ann/web", "--address="],
        ["agent", "connect", ""],
        ["agent", "stop", ""],
        ["whoami", "--relay", ""],
        ["whoami", "--ca-file=", "--relay", "https://relay.example"],
        ["whoami", "--token-file", ""],
        ["relay", "serve", "--listen", ""],
        ["relay", "serve", "--database="],
        ["relay", "serve", "--tls-cert", "\t"],
        ["relay", "admin", "list", "--database", ""],
    ],
)
def test_empty_values(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An empty or blank value is an error that names its option, and never stands for a default."""
    assert run_command(line) == 2
    said = capsys.readouterr().err
    assert "is empty. [bad_request]" in said.splitlines()[0]
    assert not line[-1].strip() or line[-1].split("=")[0] in said or "--ca-file" in said


def test_no_secret_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """The part before an empty argument is not shown if it is a value."""
    assert run_command(["whoami", "--token", "hidden-word", ""]) == 2
    assert "hidden-word" not in capsys.readouterr().err


@pytest.mark.parametrize("address", ["", " ", "\udcff", "a\x00b"])
def test_addresses_that_are_none(address: str) -> None:
    """The library refuses empty addresses, too, because the system would take one for every address."""
    with pytest.raises(KdispatchError, match="local address"):
        LocalPort(address, 80)


def test_blank_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A blank variable, and an empty line of the file, are errors that name them; an empty variable counts as unset."""
    monkeypatch.setenv("KDISPATCH_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("KDISPATCH_PROXY", "")
    settings.load_settings()
    monkeypatch.setenv("KDISPATCH_PROXY", " ")
    with pytest.raises(SetupError, match=r"^KDISPATCH_PROXY is blank"):
        settings.load_settings()
    with pytest.raises(SetupError, match=r"^proxy is blank"):
        settings.load_settings(proxy=" ")
    assert settings.load_settings(proxy="http://p:1").proxy == "http://p:1"
    monkeypatch.delenv("KDISPATCH_PROXY")
    (tmp_path / "config.toml").write_text('ca_file = ""\n')
    with pytest.raises(SetupError, match="ca_file is empty"):
        settings.load_settings()
    monkeypatch.setenv("KDISPATCH_STATE_DIR", " ")
    with pytest.raises(SetupError, match="KDISPATCH_STATE_DIR is blank"):
        settings.state_directory()


@pytest.mark.parametrize("name", [settings.setting_of(field.name).env for field in fields(settings.Settings)])
def test_blank_variables(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """For each setting, a blank variable ends a command with an error that names it."""
    monkeypatch.setenv("KDISPATCH_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv(name, " ")
    assert run_command(["whoami"]) == 2
    assert capsys.readouterr().err.startswith(f"kdispatch: {name} is ")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("KDISPATCH_CONFIG_DIR", "whoami"),
        ("KDISPATCH_STATE_DIR", "status"),
        ("KDISPATCH_TOKEN", "whoami"),
    ],
)
def test_blank_variables_that_are_no_settings(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The same holds for all other variables that a command needs."""
    for variable in ("KDISPATCH_CONFIG_DIR", "KDISPATCH_STATE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("KDISPATCH_RELAY", "http://127.0.0.1:1")
    monkeypatch.setenv(name, " ")
    assert run_command([command]) != 0
    assert capsys.readouterr().err.startswith(f"kdispatch: {name} is blank. [")


@pytest.mark.parametrize("name", ["KDISPATCH_NO_UVLOOP", "KDISPATCH_DEBUG"])
def test_blank_switches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for variables that are 1 or 0."""
    monkeypatch.setenv(name, " ")
    with pytest.raises(SetupError, match=f"^{name} is blank"):
        settings.environment_switch(name)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff", "is not text in UTF-8: see its byte 1."), (None, "cannot be read: Is a directory.")],
    ids=["binary", "folder"],
)
def test_settings_file_of_no_use(
    content: bytes | None, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The system's reason about config.toml appears without its number, and with one full stop."""
    monkeypatch.setenv("KDISPATCH_CONFIG_DIR", str(tmp_path))
    file = tmp_path / "config.toml"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(SetupError) as caught:
        settings.load_settings()
    assert caught.value.text == f"{file} {said}"


@pytest.mark.slow
def test_a_current_directory_that_is_gone(tmp_path: Path) -> None:
    """A command whose current directory was deleted works, and the error for a relative path says it leads nowhere."""
    gone = tmp_path / "gone"
    for command, said in (
        ("status", "No agent runs here"),
        ("whoami --relay http://127.0.0.1:1 --ca-file x.pem", "leads nowhere"),
        ("relay admin list --database relay.db", "leads nowhere"),
    ):
        gone.mkdir()
        line = f"cd {gone} && rmdir {gone} && exec {_KDISPATCH} {command}"
        ended = subprocess.run(
            ["sh", "-c", line], env=_environment(tmp_path), capture_output=True, text=True, check=False
        )
        assert said in ended.stdout + ended.stderr


def test_what_the_system_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A system error that no command expects is reported as the system's, and not as a defect."""

    def refuse() -> Path:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("kdispatch.machine.records.agents_directory", refuse)
    assert run_command(["status"]) == 1
    assert capsys.readouterr().err.startswith("kdispatch: The system refused: No usable temporary directory")
