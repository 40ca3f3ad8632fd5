"""Doctor's checks of this machine, its output lines, and its bundle."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest

from kdispatch.credentials import Credentials
from kdispatch.doctor.bundle import write_bundle
from kdispatch.doctor.findings import Finding, Level, exit_status, fails, ok, skipped, warns, worst
from kdispatch.doctor.machine import check_config, check_credentials, check_descriptors, check_files, check_port
from kdispatch.doctor.redaction import clean
from kdispatch.network.asking import HttpAnswer
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import Settings
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import CODES
from kdispatch_protocol.tokens import format_token
from tests.docs.examples import free_ports
from tests.guards.systems import is_private

_RELAY: Final = RelayUrl.parse("https://relay.example.org")
_TOKEN: Final = format_token("adm", b"\x01" * 32)
_PASSWORD: Final = "hunter2%40home"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDISPATCH_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("KDISPATCH_TOKEN", raising=False)
    return tmp_path


def _levels(findings: list[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


# --- this machine -----------------------------------------------------------------------------------


def test_plain_http_to_another_machine_is_a_warning() -> None:
    """Plain HTTP that everyone can read is reported, even if it was allowed."""
    plain = Settings(relay="http://192.0.2.1", insecure_plaintext=True)
    assert _levels(check_config(plain)) == [Level.WARN]
    assert _levels(check_config(Settings(relay="https://192.0.2.1"))) == [Level.OK]


@pytest.mark.skipif(os.name == "nt", reason="modes say nothing there")
def test_files_that_others_may_read(home: Path) -> None:
    """Each such file has the command that repairs it, including a client's key; config.toml only with a password."""
    Credentials().store_admin(_RELAY, "ann", _TOKEN)
    (home / "config" / "config.toml").touch(0o644)
    assert _levels(check_files(Settings())) == [Level.OK]
    (home / "config" / "credentials.json").chmod(0o640)
    [stored, config] = check_files(Settings(proxy="http://ann:secret@proxy.example"))
    assert stored.hint == f"chmod 600 {home}/config/credentials.json"
    assert (config.level, config.hint) == (Level.FAIL, f"chmod 600 {home}/config/config.toml")
    key = home / "client.key"
    key.touch(0o644)
    _, key_found = check_files(Settings(client_cert="/nowhere/client.pem", client_key=str(key)))
    assert key_found.hint == f"chmod 600 {key}"


def test_credentials_are_named_and_not_shown() -> None:
    """Handles and services are shown, tokens are not; none is no error, and a damaged file is one."""
    assert _levels(check_credentials(_RELAY, None)) == [Level.OK]
    Credentials().store_admin(_RELAY, "ann", _TOKEN)
    [found] = check_credentials(_RELAY, None)
    assert (found.level, found.text) == (Level.OK, "ann (admin)")
    Credentials().path.write_text("{")
    [found] = check_credentials(_RELAY, None)
    assert (found.level, found.hop, found.code) == (Level.FAIL, "you", "not_logged_in")


async def test_the_local_port() -> None:
    """A closed local port fails with the code that hosts end with."""
    [port] = free_ports(1)
    [found] = await check_port("127.0.0.1", int(port))
    assert (found.level, found.code, found.hop) == (Level.FAIL, "local_port_closed", "host -> service")


def test_few_descriptors_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that raises the limit names what the system allows."""
    resource: Any = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (128, 4096))
    [found] = check_descriptors()
    assert (found.level, found.hint) == (Level.WARN, "ulimit -n 4096, before the agent is started")


# --- lines ------------------------------------------------------------------------------------------


def test_the_worst_decides() -> None:
    """The status is 0 if all is well or not checked, 7 for warnings, and 1 as soon as one check failed."""
    well = [ok("a", "x"), skipped("b", "x")]
    warned = [*well, warns("c", "x", "do")]
    assert [exit_status(found) for found in (well, warned, [*warned, fails("d", "x", "do")])] == [0, 7, 1]
    assert worst(warned) is Level.WARN


def test_lines() -> None:
    """A problem is followed by its hop and a hint; a passed check has one line."""
    assert ok("dns", "192.0.2.1").lines(6) == ["OK    dns     192.0.2.1"]
    assert fails("tls", "No.", "Ask.").lines(6) == [
        "FAIL  tls     No.",
        "              at:  you -> relay",
        "              try: Ask.",
    ]


@pytest.mark.parametrize(
    ("headers", "author", "passed_by"),
    [
        ({"server": "Python/3.11 aiohttp/3.14"}, " (server: Python/3.11 aiohttp/3.14)", ""),
        ({"server": "nginx"}, " (server: nginx)", " (server: nginx)"),
        ({"server": "Python/3.11 aiohttp/3.14", "via": "1.1 Caddy"},
         " (server: Python/3.11 aiohttp/3.14; via: 1.1 Caddy)", " (via: 1.1 Caddy)"),
        ({}, "", ""),
    ],
)  # fmt: skip
def test_who_is_on_the_way(headers: dict[str, str], author: str, passed_by: str) -> None:
    """What forwards the relay's answers is known by its own name, or by Via; the relay's own server is not listed."""
    answer = HttpAnswer(400, headers, "bad_request", 0.01)
    assert (answer.author, answer.passed_by) == (author, passed_by)


# --- secrets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"token {_TOKEN} refused",
        f"http://ann:{_PASSWORD}@proxy.example:3128",
        f"Proxy-Authorization: Basic {_PASSWORD}",
        f'"authorization": "Bearer {_PASSWORD}"',
        f"it said {_PASSWORD}.",
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    """Removed are tokens, the part before an @ in an address, header values, and known secrets."""
    cleaned = clean(text, [_PASSWORD])
    assert _PASSWORD not in cleaned and _TOKEN not in cleaned and "[redacted]" in cleaned


def test_an_example_is_no_secret() -> None:
    """The hint with a proxy's URL as an example stays readable; a real URL with the same words does not."""
    hint = CODES["proxy_auth"].hint
    assert clean(hint) == hint
    for address in (
        "http://USER:PASSWORD@proxy:1",
        "http://user:password@host:port",
        "http://USER:PASSWORD@HOST:PORTx@p",
    ):
        assert clean(f"through {address} now").split("@")[0] == "through http://[redacted]"


def test_a_bundle_has_no_secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and proxies' passwords are in none of its files, including logs, and only its owner can read it."""
    given = format_token("svc", b"\x02" * 32)
    Credentials().store_admin(_RELAY, "ann", _TOKEN)
    Credentials().store_client(_RELAY, "bob/db", "kept-for-bob")  # not of today's form
    monkeypatch.setenv("KDISPATCH_TOKEN", given)
    monkeypatch.setenv("HTTPS_PROXY", f"http://ann:{_PASSWORD}@proxy.example:3128")
    logs = home / "state" / "agents"
    logs.mkdir(parents=True)
    secrets = (given, _TOKEN, _PASSWORD, "hunter2@home", "kept-for-bob")
    (logs / "0123456789ab.log").write_text("\n".join(f"lost: {secret} was shown" for secret in secrets))
    settings = Settings(relay=str(_RELAY), proxy=f"http://ann:{_PASSWORD}@proxy.example:3128")
    path = home / "b.zip"
    names = write_bundle(path, [fails("proxy", f"no {_TOKEN}", "ask")], settings, given, 8)
    assert is_private(path)
    with zipfile.ZipFile(path) as bundle:
        assert bundle.namelist() == names
        parts = {name: bundle.read(name).decode() for name in names}
    assert "logs/0123456789ab.log" in parts
    for name, text in parts.items():
        assert not [secret for secret in secrets if secret in text], name
    assert json.loads(parts["settings.json"])["proxy"] == "http://[redacted]@proxy.example:3128"
    assert json.loads(parts["environment.json"])["KDISPATCH_TOKEN is set"] is True
    assert json.loads(parts["findings.json"])[0]["check"] == "proxy"


def test_a_bundle_that_cannot_be_written(home: Path) -> None:
    """The error for a bundle that cannot be written names the file."""
    with pytest.raises(SetupError) as caught:
        write_bundle(home / "none" / "b.zip", [], None, None, 8)
    assert f"{Path('none', 'b.zip')} cannot be written" in caught.value.text


@pytest.mark.parametrize(
    "address",
    ['http://us3r:pa"ss1@h:1', "http://us3r:p'äss@h:1", "us3r:abc@h:1", "apik3y@h:1", "us3r:p\\a@h:1"],
)
def test_no_part_of_a_proxys_credentials_is_in_a_bundle(
    home: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """In any form of a proxy, name and password are removed; an existing file becomes readable by its owner only."""
    monkeypatch.setenv("HTTPS_PROXY", address)
    path = home / "b.zip"
    path.touch(0o644)
    write_bundle(path, [], Settings(relay=str(_RELAY), proxy=address), None, 8)
    assert is_private(path)
    before = address.rpartition("@")[0].rpartition("://")[2]
    with zipfile.ZipFile(path) as bundle:
        for name in bundle.namelist():
            text = bundle.read(name).decode()
            assert before not in text and json.dumps(before)[1:-1] not in text, name
            assert "us3r" not in text and "apik3y" not in text, name
