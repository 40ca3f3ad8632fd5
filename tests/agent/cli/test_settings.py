from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from kdispatch.relay_url import RelayUrl
from kdispatch.settings import SetupError, load_settings, remember_relay, write_private

ONE, TWO = RelayUrl.parse("https://one.example"), RelayUrl.parse("https://two.example/kd")


def write(directory: Path, text: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_go_before_environment_file_and_default(own_configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of flag, environment, file and default with a value is in force."""
    assert load_settings().relay == ""
    write(own_configuration, 'relay = "file.example"\ninsecure_plaintext = true\n')
    assert load_settings() == load_settings(relay="file.example", insecure_plaintext=True)
    monkeypatch.setenv("KDISPATCH_RELAY", "environment.example")
    monkeypatch.setenv("KDISPATCH_INSECURE_PLAINTEXT", "0")
    assert load_settings() == load_settings(relay="environment.example", insecure_plaintext=False)
    assert load_settings(relay="flag.example", insecure_plaintext=None).relay == "flag.example"
    monkeypatch.setenv("KDISPATCH_RELAY", "")
    assert load_settings().relay == "file.example"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rely = 'x'", "Did you mean 'relay'?"),
        ("zzz = 1", "Known are ca_file, client_cert, client_key, grace, insecure_plaintext, log_format, no_proxy, "),
        ("relay = 1", "relay must be URL"),
        ("insecure_plaintext = 1", "must be yes or no"),
        ("config_version = 2", "config_version 2"),
        ("relay =", "not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(own_configuration: Path, text: str, says: str) -> None:
    """An unknown key, a wrong type, a newer version and a syntax error each name the file and the cause."""
    path = write(own_configuration, text)
    with pytest.raises(SetupError) as caught:
        load_settings()
    assert caught.value.code == "bad_request"
    assert str(path) in caught.value.text
    assert says in caught.value.text


def test_times_are_numbers_within_bounds(own_configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time may be a fraction, from the file or the environment; an invalid or too long one is an error."""
    write(own_configuration, "grace = 60\nopen_wait = 1.5\n")
    assert (load_settings().grace, load_settings().open_wait) == (60.0, 1.5)
    monkeypatch.setenv("KDISPATCH_GRACE", "0.5")
    assert load_settings().grace == 0.5
    assert load_settings(grace=7.0).grace == 7
    for wrong in ("soon", "-1", "nan", "1e9"):
        monkeypatch.setenv("KDISPATCH_GRACE", wrong)
        with pytest.raises(SetupError, match=r"GRACE|grace"):
            load_settings()
    monkeypatch.delenv("KDISPATCH_GRACE")
    with pytest.raises(SetupError, match="open_wait is 61"):
        load_settings(open_wait=61.0)


def test_a_switch_is_yes_or_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch in the environment that is neither yes nor no is an error, and not guessed."""
    monkeypatch.setenv("KDISPATCH_INSECURE_PLAINTEXT", "maybe")
    with pytest.raises(SetupError, match="KDISPATCH_INSECURE_PLAINTEXT"):
        load_settings()


def test_the_relay_is_remembered_in_a_private_file(own_configuration: Path) -> None:
    """The first write creates a directory of mode 0700 and a file of mode 0600 with its version."""
    assert remember_relay(ONE)
    assert not remember_relay(ONE)
    path = own_configuration / "config.toml"
    assert tomllib.loads(path.read_text()) == {"config_version": 1, "relay": str(ONE)}
    assert stat.S_IMODE(own_configuration.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_settings().relay_url == ONE


@pytest.mark.parametrize(
    "text",
    [
        "# mine\nconfig_version = 1\n\n# keep\nrelay = 'https://old.example'  # old\ninsecure_plaintext = true\n",
        "# mine\n# keep\ninsecure_plaintext = true",
        "",
    ],
)
def test_remembering_keeps_what_a_person_wrote(own_configuration: Path, text: str) -> None:
    """Comments and other keys survive a change of the relay."""
    path = write(own_configuration, text)
    remember_relay(ONE)
    remember_relay(TWO)
    assert load_settings().relay_url == TWO
    assert load_settings().insecure_plaintext == ("insecure_plaintext" in text)
    assert ("# mine" in text, "# keep" in text) == ("# mine" in path.read_text(), "# keep" in path.read_text())


def test_a_file_that_cannot_be_changed_safely_is_left_alone(own_configuration: Path) -> None:
    """If the edit would change more than the relay, the file stays, and the error has the line to write."""
    text = '"relay" = "https://old.example"\n'
    path = write(own_configuration, text)
    with pytest.raises(SetupError) as caught:
        remember_relay(ONE)
    assert path.read_text() == text
    assert str(ONE) in caught.value.hint or str(path) in caught.value.hint


def test_a_write_that_fails_leaves_the_old_file_and_no_other(own_configuration: Path) -> None:
    """A file is replaced completely or not at all, and a symbolic link stays one."""
    own_configuration.mkdir()
    (own_configuration / "real").write_bytes(b"old")
    link = own_configuration / "link"
    link.symlink_to("real")
    write_private(link, b"new")
    assert link.is_symlink()
    assert (own_configuration / "real").read_bytes() == b"new"
    (own_configuration / "full").mkdir()
    with pytest.raises(SetupError):
        write_private(own_configuration / "full", b"a directory is in the way")
    assert sorted(path.name for path in own_configuration.iterdir()) == ["full", "link", "real"]
