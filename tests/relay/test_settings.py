from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.cli import app
from kdispatch_relay.limiter import RATES, Rate
from kdispatch_relay.settings import LIMITS, SETTINGS, RelaySettings, environment_name

PEM = Path("relay.pem")


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:8443", ("127.0.0.1", 8443)),
        ("127.8.9.1:0", ("127.8.9.1", 0)),
        ("[::1]:8443", ("::1", 8443)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_loopback(listen: str, address: tuple[str, int]) -> None:
    """On loopback plain HTTP is allowed: a server in front may terminate TLS."""
    assert RelaySettings(listen=listen).address == address


@pytest.mark.parametrize("listen", ["0.0.0.0:8443", "[::]:8443", "192.0.2.1:80", "relay.example.org:80", "127.1:80"])
def test_public_plaintext(listen: str) -> None:
    """A public address without TLS is refused, unless --insecure-plaintext is given."""
    with pytest.raises(KdispatchError) as caught:
        RelaySettings(listen=listen)
    assert caught.value.code == "plaintext_refused"
    assert RelaySettings(listen=listen, insecure_plaintext=True).listen == listen
    assert RelaySettings(listen=listen, tls_cert=PEM, tls_key=PEM).listen == listen


@pytest.mark.parametrize(
    "listen", ["", "8443", ":8443", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "::1:8443", "[::1]", "a:65536", "a:-1"]
)
def test_bad_listen(listen: str) -> None:
    """An address that is not HOST:PORT is refused with a valid example."""
    with pytest.raises(KdispatchError, match=r"like 127\.0\.0\.1:8443") as caught:
        RelaySettings(listen=listen)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("one", ["tls_cert", "tls_key"])
def test_half_of_tls(one: str) -> None:
    """A certificate without its key, or the other way round, is an error, and does not lead to plain HTTP."""
    with pytest.raises(KdispatchError, match="both, or neither"):
        RelaySettings(**{one: PEM})  # type: ignore[arg-type]  # one of two fields of the same type


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: rate.kind)
def test_a_rate_tells_its_burst(rate: Rate) -> None:
    """The help of a rate's setting names the burst where it differs from the number."""
    told = {1.0: "", 0.2: "at once a fifth", 2.0: "at once twice", 4.0: "four times", 5.0: "five times"}
    assert told[rate.at_once] in SETTINGS[rate.setting].metadata["help"]


def test_every_setting_is_described() -> None:
    """Each setting has one sentence and its own variable."""
    for name, setting in SETTINGS.items():
        assert setting.metadata["help"].endswith(".")
        assert environment_name(name) == "KDISPATCH_SERVE_" + name.upper()


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    """A limit is a number, 0 means none, and a negative one is an error."""
    assert getattr(RelaySettings(**{name: 0}), name) == 0  # type: ignore[arg-type]  # each is a number
    with pytest.raises(KdispatchError, match=f"--{name.replace('_', '-')} must be"):
        RelaySettings(**{name: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "taken"), [("off", 0), ("0", 0), ("7", 7), ("-1", None), ("many", None)])
def test_limits_on_the_command_line(given: str, taken: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit is a number or off, by flag and by variable; anything else ends with exit status 2."""
    made: list[RelaySettings] = []

    async def serve(settings: RelaySettings) -> None:
        made.append(settings)

    monkeypatch.setattr("kdispatch_relay.serving.serve", serve)
    for words, variables in (["--limit-requests", given], {}), ([], {"KDISPATCH_SERVE_LIMIT_REQUESTS": given}):
        ended = CliRunner().invoke(app, ["serve", "--no-uvloop", *words], env=variables)
        assert ended.exit_code == (2 if taken is None else 0), ended.output
    assert [settings.limit_requests for settings in made] == ([] if taken is None else [taken] * 2)


#: A valid value that is not the default; ``None`` for a switch. Others are numbers.
_OTHER: Final[dict[str, str | None]] = {
    "listen": "127.0.0.1:9",
    "database": "other.db",
    "tls_cert": "relay.pem",
    "tls_key": "relay.pem",
    "insecure_plaintext": None,
    "trusted_proxy": "192.0.2.1",
    "allowed_host": "relay.example.org",
    "reuse_port": None,
    "sign_up": "code",
    "operator_token_file": "operator.token",
    "log_format": "json",
    "verbose": None,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_flag_and_a_variable_for_each_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting has its flag and its variable, and both reach the relay."""
    made: list[RelaySettings] = []

    async def serve(settings: RelaySettings) -> None:
        made.append(settings)

    monkeypatch.setattr("kdispatch_relay.serving.serve", serve)
    given = {one: _OTHER.get(one, "7") for one in (("tls_cert", "tls_key") if name.startswith("tls") else (name,))}
    flags = [word for one, value in given.items() for word in (f"--{one.replace('_', '-')}", value) if word is not None]
    variables = {environment_name(one): value or "1" for one, value in given.items()}
    for words, environment in (flags, {}), ([], variables):
        ended = CliRunner().invoke(app, ["serve", "--no-uvloop", *words], env=environment)
        assert ended.exit_code == 0, ended.output
    assert [getattr(settings, name) == SETTINGS[name].default for settings in made] == [False, False]


def test_sign_up() -> None:
    """The sign-up setting is one of three words."""
    with pytest.raises(KdispatchError, match="open, code or closed"):
        RelaySettings(sign_up="nobody")
