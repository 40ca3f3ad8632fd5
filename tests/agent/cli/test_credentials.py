from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from kdispatch import credentials
from kdispatch.credentials import Credentials, given_code, given_token
from kdispatch.machine import windows_console
from kdispatch.machine.operating_system import Windows
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import SetupError
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import token_digest, token_id
from tests.agent.cli.fake_relay import new_token

RELAY, OTHER = RelayUrl.parse("https://relay.example"), RelayUrl.parse("https://other.example")
ADM, SVC, GIVEN = new_token("adm"), new_token("svc"), new_token("svc")


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], TextIO]]:
    """Puts bytes into standard input."""
    with contextlib.ExitStack() as files:

        def put(data: bytes) -> TextIO:
            file = files.enter_context(tempfile.TemporaryFile("w+"))
            file.buffer.write(data)
            file.seek(0)
            monkeypatch.setattr(sys, "stdin", file)
            return file

        yield put


def silent(text: str) -> None:
    raise AssertionError(text)


def test_tokens_belong_to_one_relay() -> None:
    """A token stored for one relay is not shown to another, and a second process sees it."""
    Credentials().store_admin(RELAY, "ann", ADM)
    Credentials().store_service(RELAY, "ann/web", SVC)
    stored = Credentials()
    assert (stored.handle(RELAY), stored.admin_token(RELAY)) == ("ann", ADM)
    assert stored.service_token(RelayUrl.parse("https://RELAY.example:443/"), "ann/web") == SVC
    assert (stored.handle(OTHER), stored.admin_token(OTHER)) == (None, None)
    assert stat.S_IMODE(stored.path.stat().st_mode) == 0o600


def test_a_second_handle_keeps_the_first_ones_token() -> None:
    """A second sign-up at a relay becomes the current handle, and nothing is lost."""
    stored = Credentials()
    stored.store_admin(RELAY, "ann", ADM)
    stored.store_admin(RELAY, "bob", new_token("adm"))
    assert stored.handle(RELAY) == "bob"
    assert stored.admin_token(RELAY, "ann") == ADM


def test_a_name_alone_is_the_current_handles() -> None:
    """NAME means HANDLE/NAME of the current handle, and without one the error says what to write."""
    stored = Credentials()
    with pytest.raises(SetupError) as caught:
        stored.full_name(RELAY, "web")
    assert (caught.value.code, "HANDLE/web" in caught.value.hint) == ("not_logged_in", True)
    stored.store_admin(RELAY, "ann", ADM)
    assert stored.full_name(RELAY, "web") == "ann/web"
    assert stored.full_name(RELAY, "bob/web") == "bob/web"
    for wrong in ("", "Web", "a/b/c", "/web", "ann/"):
        with pytest.raises(KdispatchError, match="bad_name"):
            stored.full_name(RELAY, wrong)


def test_the_first_source_of_a_token_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first existing token is used of flag, file, environment, the service's stored token, its owner's."""
    stored, file, warnings = Credentials(), tmp_path / "token", list[str]()
    file.write_text(f"{(in_file := new_token('svc'))}\n")
    file.chmod(0o600)

    def take(token: str | None = None, token_file: str | None = None) -> str:
        return stored.token_for_host(RELAY, "ann/web", token=token, token_file=token_file, warn=warnings.append)

    with pytest.raises(KdispatchError, match="not_logged_in"):
        take()
    stored.store_admin(RELAY, "bob", new_token("adm"))
    with pytest.raises(KdispatchError, match="not_logged_in"):
        take()  # another handle's token can't host it
    stored.store_admin(RELAY, "ann", ADM)
    assert take() == ADM
    stored.store_service(RELAY, "ann/web", SVC)
    assert take() == SVC
    assert stored.token_for_client(RELAY, "ann/web", warn=silent) == ADM
    assert stored.token_for_client(RELAY, "zoe/web", warn=silent) is None
    monkeypatch.setenv("KDISPATCH_TOKEN", in_environment := new_token("svc"))
    assert take() == in_environment
    assert take(token_file=str(file)) == take(token=f"@{file}") == in_file
    assert not warnings
    assert take(token=GIVEN, token_file=str(file)) == GIVEN
    assert len(warnings) == 1
    assert GIVEN not in warnings[0]


def test_a_token_is_read_from_standard_input(type_in: Callable[[bytes], TextIO]) -> None:
    """'-' reads one line of standard input, and no more."""
    lines = type_in(f"{GIVEN}\nfor somebody else".encode())
    assert given_token("-", None, warn=silent) == GIVEN
    assert lines.read() == "for somebody else"


def test_what_is_no_token_is_refused_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated token never leaves the machine, and the error does not show it."""
    cut = SVC[:-1]
    (file := tmp_path / "token").write_text(cut)
    file.chmod(0o600)
    with pytest.raises(SetupError) as of_file:
        given_token(None, str(file), warn=silent)
    monkeypatch.setenv("KDISPATCH_TOKEN", cut)
    with pytest.raises(SetupError) as of_environment:
        given_token(None, None, warn=silent)
    for caught in (of_file, of_environment):
        assert caught.value.code == "token_refused"
        assert cut not in caught.value.text
    with pytest.raises(SetupError, match="not_logged_in"):
        given_token(None, str(tmp_path / "absent"), warn=silent)


def test_a_file_that_others_can_read_is_refused() -> None:
    """A credentials file with another mode is not used, and the error has the command that repairs it."""
    stored = Credentials()
    stored.store_admin(RELAY, "ann", ADM)
    stored.path.chmod(0o640)
    attempts: list[Callable[[], object]] = [lambda: stored.handle(RELAY), stored.check]
    for attempt in attempts:
        with pytest.raises(SetupError) as caught:
            attempt()
        assert caught.value.code == "not_logged_in"
        assert "0640" in caught.value.text
        assert caught.value.hint == f"chmod 600 {stored.path}"


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A token file with another mode is refused with the command that repairs it; a pipe is accepted."""
    (file := tmp_path / "token").write_text(GIVEN)
    file.chmod(0o644)
    with pytest.raises(SetupError) as caught:
        given_token(None, str(file), warn=silent)
    assert (caught.value.code, caught.value.hint.startswith(f"chmod 600 {file},")) == ("not_logged_in", True)
    read, write = os.pipe()
    os.write(write, GIVEN.encode())
    os.close(write)
    assert given_token(None, f"/dev/fd/{read}", warn=silent) == GIVEN
    os.close(read)


def test_an_empty_variable_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty KDISPATCH_TOKEN counts as unset."""
    monkeypatch.setenv("KDISPATCH_TOKEN", "")
    assert given_token(None, None, warn=silent) is None


def test_what_is_dropped_is_gone_and_nothing_else() -> None:
    """Dropping removes only the named tokens, and the only remaining handle becomes the current one."""
    stored = Credentials()
    stored.store_admin(RELAY, "ann", ADM)
    stored.store_admin(RELAY, "bob", GIVEN)
    stored.store_service(RELAY, "ann/web", SVC)
    stored.store_service(OTHER, "ann/web", SVC)
    stored.drop(RELAY, handles=["bob"], services=["ann/web"])
    assert (stored.handle(RELAY), stored.handles(RELAY), stored.services(RELAY)) == ("ann", ("ann",), ())
    stored.drop(RELAY, handles=["ann"])
    assert (stored.handle(RELAY), stored.service_token(OTHER, "ann/web")) == (None, SVC)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"credentials_version": 2, "relays": {}}',
                                    '{"credentials_version": 1, "relays": {"r": {"admins": {"a": 1}}}}',
                                    '{"credentials_version": 1, "relays": {"r": 7}}', "\x00\x00"])  # fmt: skip
def test_a_damaged_file_is_never_overwritten(damage: str) -> None:
    """Neither reading nor storing changes a file that is not understood, because its tokens cannot be had again."""
    stored = Credentials()
    stored.store_admin(RELAY, "ann", ADM)
    stored.path.write_text(damage)
    attempts: list[Callable[[], object]] = [lambda: stored.handle(RELAY), stored.check]
    attempts.append(lambda: stored.store_service(RELAY, "ann/web", SVC))
    for attempt in attempts:
        with pytest.raises(SetupError) as caught:
            attempt()
        assert caught.value.code == "not_logged_in"
        assert stored.path.read_text() == damage


def test_what_a_newer_release_added_to_an_entry_is_kept() -> None:
    """Keys that this release does not know survive a write."""
    stored = Credentials()
    stored.store_admin(RELAY, "ann", ADM)
    content = json.loads(stored.path.read_text())
    content["relays"][str(RELAY)]["clients"] = {"bob/db": "kept"}
    stored.path.write_text(json.dumps(content))
    stored.store_service(RELAY, "ann/web", SVC)
    assert json.loads(stored.path.read_text())["relays"][str(RELAY)]["clients"] == {"bob/db": "kept"}


async def test_processes_that_write_at_once_lose_nothing(own_configuration: Path) -> None:
    """Four processes that store ten tokens each leave forty, and no other file than the lock."""
    script = (
        "import sys\nfrom kdispatch.credentials import Credentials\nfrom kdispatch.relay_url import RelayUrl\n"
        f"for n in range(10): Credentials().store_service(RelayUrl.parse('{RELAY}'), f'{{sys.argv[1]}}/s{{n}}', 'x')"
    )
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", script, f"p{n}") for n in range(4)]
    assert [await process.wait() for process in processes] == [0] * 4
    content = json.loads((own_configuration / "credentials.json").read_text())
    assert len(content["relays"][str(RELAY)]["services"]) == 40
    assert sorted(path.name for path in Credentials().path.parent.iterdir()) == ["credentials.json", "lock"]


def test_the_token_to_connect_with() -> None:
    """To connect, the given token comes first, then the service's own, then its owner's; none of these can host."""
    stored, cli = Credentials(), new_token("cli")
    assert stored.token_for_client(RELAY, "ann/web", warn=silent) is None
    stored.store_admin(RELAY, "ann", ADM)
    assert stored.token_for_client(RELAY, "ann/web", warn=silent) == ADM
    stored.store_client(RELAY, "ann/web", cli)
    stored.store_service(RELAY, "ann/web", SVC)
    assert stored.token_for_client(RELAY, "ann/web", warn=silent) == cli
    assert stored.token_for_client(RELAY, "ann/db", warn=silent) == ADM
    assert stored.token_for_client(RELAY, "ann/web", token=f"@{_private(GIVEN)}", warn=silent) == GIVEN
    assert stored.token_for_host(RELAY, "ann/web", warn=silent) == SVC


def test_a_file_of_an_older_release() -> None:
    """A file without tokens to connect is read, and can get them without losing anything."""
    stored = Credentials()
    stored.store_admin(RELAY, "ann", ADM)
    assert "clients" not in stored.path.read_text()
    assert stored.clients(RELAY) == () and stored.client_token(RELAY, "bob/db") is None
    stored.store_client(RELAY, "bob/db", new_token("cli"))
    assert (stored.clients(RELAY), stored.admin_token(RELAY)) == (("bob/db",), ADM)
    stored.drop(RELAY, clients=["bob/db"])
    assert (stored.clients(RELAY), stored.admin_token(RELAY)) == ((), ADM)


def test_a_revoked_token_is_dropped_by_its_id() -> None:
    """The token with this id is removed wherever it is stored, and no other."""
    stored, cli = Credentials(), new_token("cli")
    stored.store_admin(RELAY, "ann", ADM)
    stored.store_client(RELAY, "bob/db", cli)
    assert stored.drop_token(RELAY, "0" * 16) == []
    assert stored.drop_token(RELAY, token_id(token_digest(cli))) == ["bob/db"]
    assert (stored.clients(RELAY), stored.admin_token(RELAY)) == ((), ADM)
    assert stored.drop_token(RELAY, token_id(token_digest(ADM))) == ["ann"]
    assert stored.handle(RELAY) is None


def test_a_code(type_in: Callable[[bytes], TextIO]) -> None:
    """A code is accepted as it was typed, from a file or from standard input; no other token is."""
    code = new_token("inv")
    type_in(f"{code}\n".encode() * 2)
    assert {given_code(code), given_code(f"@{_private(code)}"), given_code("-"), given_code(None)} == {code}
    for wrong in (ADM, code[:-1], ""):
        with pytest.raises(SetupError) as caught:
            given_code(wrong)
        assert caught.value.code == "token_refused"
        assert not wrong or wrong not in caught.value.text + caught.value.hint


def _private(secret: str) -> Path:
    path = Credentials().path.with_name("given.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o600)
    path.write_text(secret)
    return path


_ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]  # of a shell, of Windows' editors, of PowerShell's >


@pytest.mark.parametrize("encoding", _ENCODINGS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \r\n\r\n"])
def test_a_token_as_other_programs_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_in: Callable[[bytes], TextIO], encoding: str, end: str
) -> None:
    """Encoding marks, UTF-16 and line ends are not part of a token, from a file or standard input."""
    data = f"{GIVEN}{end}".encode(encoding)
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_bytes(data)
    assert given_token(None, str(file), warn=silent) == given_token(f"@{file}", None, warn=silent) == GIVEN
    type_in(data)
    assert given_token("-", None, warn=silent) == GIVEN
    file.write_bytes(b"\xfe\xff" + f"{GIVEN}{end}".encode("utf-16-be"))
    assert given_token(None, str(file), warn=silent) == GIVEN
    monkeypatch.setenv("KDISPATCH_TOKEN", f"\ufeff{GIVEN}{end}")
    assert given_token(None, None, warn=silent) == GIVEN


def test_no_input_on_windows(monkeypatch: pytest.MonkeyPatch, type_in: Callable[[bytes], TextIO]) -> None:
    """NUL is a terminal for ``isatty`` on Windows, and no console: a command that reads a token there gets none."""
    monkeypatch.setattr(credentials, "HERE", Windows())
    monkeypatch.setattr(windows_console, "is_console", lambda _: False)
    monkeypatch.setattr(Windows, "read_hidden", lambda *_: pytest.fail("it asked"))
    monkeypatch.setattr(type_in(b""), "isatty", lambda: True)
    with pytest.raises(SetupError, match="token_refused"):
        given_token("-", None, warn=silent)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\xff\xfea", b"\xef\xbb\xbf", b"\x00" * 56, b"\xff" * 56, b""])
def test_a_token_file_of_other_bytes(tmp_path: Path, data: bytes) -> None:
    """Bytes that are not a token in any encoding are refused as such."""
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_bytes(data)
    with pytest.raises(SetupError, match="token_refused"):
        given_token(None, str(file), warn=silent)


@pytest.mark.skipif(os.getuid() != 0, reason="takes root: a file of root's")
@pytest.mark.parametrize(("mode", "accepted"), [(0o444, True), (0o440, True), (0o400, True), (0o644, False)])
def test_a_mounted_secret(tmp_path: Path, mode: int, accepted: bool) -> None:
    """Root's file that no user may write is a mounted secret, whose mode is not the user's; one of 0644 is an error."""
    file = tmp_path / "token"
    file.write_text(GIVEN)
    file.chmod(mode)
    if accepted:
        assert given_token(None, str(file), warn=silent) == GIVEN
        os.chown(file, 1, 1)
        assert given_token(None, str(file), warn=silent) == GIVEN  # another user's file is theirs to protect
    else:
        with pytest.raises(SetupError, match="0644"):
            given_token(None, str(file), warn=silent)


def test_a_secret_on_a_read_only_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only mount, as in Kubernetes, a mode that lets others read is accepted."""
    file = tmp_path / "token"
    file.write_text(GIVEN)
    file.chmod(0o644)
    with pytest.raises(SetupError, match="0644"):
        given_token(None, str(file), warn=silent)
    monkeypatch.setattr("kdispatch.credentials.HERE.is_read_only", lambda _: True)
    assert given_token(None, str(file), warn=silent) == GIVEN
