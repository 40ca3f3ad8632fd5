"""Every mistake of the first ten minutes gets a clear three-line error, the right code and exit status, and soon."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from kdispatch_protocol.errors import CODES
from kdispatch_protocol.tokens import format_token
from tests.first_minutes.person import Ended, Person
from tests.guards.promises import promised
from tests.net.harness import Relay

#: The longest acceptable wait in seconds; the agents' own wait for a relay or a host is 10 of them.
SOON = promised(12.0)


def _unknown_token() -> str:
    """A well-formed token that no relay knows."""
    return format_token("adm", bytes(32))


def says(ended: Ended, code: str, *words: str, status: int | None = None) -> None:
    """Check the error: three lines (what, where, hint), an empty stdout, the code's exit status, and the time."""
    row = CODES[code]
    what, where, hint = ended.err.strip().splitlines()[-3:]
    assert what.startswith("kdispatch: "), str(ended)
    assert what.endswith(f"[{code}]"), str(ended)
    assert where.startswith("  where: "), str(ended)
    assert hint.startswith("  try:   "), str(ended)
    for word in words:
        assert word in ended.err, str(ended)
    assert "Traceback" not in ended.err
    assert not ended.out, str(ended)
    assert ended.status == (row.exit if status is None else status), str(ended)
    assert ended.seconds < SOON, str(ended)


@pytest.fixture
def ann(tmp_path: Path, shared_relay: Relay) -> Person:
    """A person with an account: the relay's first admin."""
    person = Person(tmp_path / "ann", shared_relay.url)
    person.environment["KDISPATCH_TOKEN"] = shared_relay.token
    return person


@pytest.fixture
def newcomer(tmp_path: Path, shared_relay: Relay) -> Person:
    """A person without an account."""
    return Person(tmp_path / "newcomer", shared_relay.url)


@contextmanager
def listening() -> Iterator[int]:
    """A port with a listener that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    """A port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@asynccontextmanager
async def web_server() -> AsyncIterator[str]:
    """An HTTP server that is not a relay."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        page = b"<html>It works!</html>"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_no_relay_is_named(tmp_path: Path) -> None:
    """Without a relay's address, the error names the ways to give one."""
    says(await Person(tmp_path).runs("sign-up", "bob"), "bad_relay_url", "--relay", "KDISPATCH_RELAY")


@pytest.mark.parametrize("url", ["ftp://relay.example.org", "https://", "https://a b/", "htps://x"])
async def test_a_relay_url_that_is_none(tmp_path: Path, url: str) -> None:
    """A mistyped address is found before any request."""
    says(await Person(tmp_path).runs_here("sign-up", "bob", "--relay", url), "bad_relay_url")


async def test_a_relay_name_that_does_not_exist(tmp_path: Path) -> None:
    """The error for an unresolvable name contains that name."""
    ended = await Person(tmp_path).runs("sign-up", "bob", "--relay", "https://no-such-relay.invalid")
    says(ended, "relay_unreachable", "no-such-relay.invalid")


_COMMANDS = {
    "sign-up": ("sign-up", "bob"),
    "whoami": ("whoami",),
    "service list": ("service", "list"),
    "agent host": ("agent", "host", "ann/web", "--port", "PORT"),
    "agent connect": ("agent", "connect", "ann/web"),
}


def _with(arguments: tuple[str, ...], port: int) -> list[str]:
    return [argument.replace("PORT", str(port)) for argument in arguments]


@pytest.mark.slow
@pytest.mark.parametrize("command", _COMMANDS)
async def test_a_url_that_is_no_relay(tmp_path: Path, command: str) -> None:
    """A web server is reported as a web page in the relay's place, without waiting."""
    person = Person(tmp_path)
    async with web_server() as url:
        with listening() as port:
            ended = await person.runs(
                *_with(_COMMANDS[command], port), "--relay", url, environment={"KDISPATCH_TOKEN": _unknown_token()}
            )
    says(ended, "captive_portal", url.partition("://")[2], "A web page answers")


@pytest.mark.timed
@pytest.mark.slow
@pytest.mark.parametrize("command", _COMMANDS)
async def test_the_relay_is_down(tmp_path: Path, command: str) -> None:
    """If the relay is down, an agent announces its wait in one line, and then gives up with the error."""
    person = Person(tmp_path)
    with listening() as port:
        ended = await person.runs(
            *_with(_COMMANDS[command], port),
            "--relay",
            f"http://127.0.0.1:{free_port()}",
            environment={"KDISPATCH_TOKEN": _unknown_token()},
        )
    says(ended, "relay_unreachable", "connection refused")
    if command.startswith("agent"):
        assert "for 10 s" in ended.err, str(ended)
        assert len(ended.err.strip().splitlines()) == 4, str(ended)  # one line about the wait, three of the error


@pytest.mark.slow
@pytest.mark.parametrize("command", ["whoami", "service list", "agent host"])
async def test_a_wrong_token(newcomer: Person, command: str) -> None:
    """The relay refuses a well-formed unknown token at once, and the command does not try again."""
    with listening() as port:
        ended = await newcomer.runs(*_with(_COMMANDS[command], port), environment={"KDISPATCH_TOKEN": _unknown_token()})
    says(ended, "token_refused")
    assert ended.seconds < SOON / 2, str(ended)


async def test_a_token_that_was_cut(newcomer: Person) -> None:
    """A truncated token is found without a request, and the error does not repeat it."""
    cut = _unknown_token()[:-9]
    ended = await newcomer.runs("whoami", "--token", "-", given=cut)
    says(ended, "token_refused")
    assert cut not in ended.err


@pytest.mark.parametrize("command", ["whoami", "service list", "agent host"])
async def test_no_credentials_yet(newcomer: Person, command: str) -> None:
    """Without credentials, the error names the command that creates them."""
    with listening() as port:
        ended = await newcomer.runs_here(*_with(_COMMANDS[command], port))
    says(ended, "not_logged_in", "sign-up")


async def test_a_taken_handle(newcomer: Person) -> None:
    """A handle of another person is refused with `handle_taken`."""
    says(await newcomer.runs_here("sign-up", "ann"), "handle_taken", "ann")


async def test_a_taken_service(ann: Person) -> None:
    """A service that exists already is refused with `service_exists`."""
    assert (await ann.runs_here("service", "create", "twice")).status == 0
    says(await ann.runs_here("service", "create", "twice"), "service_exists", "ann/twice")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("service", "show", "ann/nothing"),
        ("service", "hosts", "ann/nothing"),
        ("service", "delete", "ann/nothing", "--yes"),
        ("agent", "connect", "ann/nothing"),
        ("agent", "host", "ann/nothing", "--port", "PORT"),
    ],
)
async def test_an_unknown_service(ann: Person, arguments: tuple[str, ...]) -> None:
    """A missing service is reported at once; no command waits for it."""
    with listening() as port:
        ended = await ann.runs(*_with(arguments, port))
    says(ended, "unknown_service")
    assert ended.seconds < SOON / 2, str(ended)


@pytest.mark.parametrize(
    "arguments",
    [
        ("sign-up", "Ann Smith"),
        ("sign-up", "-ann-"),
        ("service", "create", "web_site"),
        ("service", "show", "ann/web/x"),
        ("agent", "connect", "/web"),
        ("agent", "host", "ann/WEB", "--port", "1"),
    ],
)
async def test_a_malformed_name(ann: Person, arguments: tuple[str, ...]) -> None:
    """The error for a malformed name states the rule for names."""
    ended = await ann.runs_here(*arguments)
    if arguments[1].startswith("-"):
        says(ended, "bad_request")  # parsed as an option
    else:
        says(ended, "bad_name", "a-z")


@pytest.mark.slow
async def test_the_port_is_in_use(ann: Person) -> None:
    """If another program uses the port for connect, the error names the port."""
    assert (await ann.runs("service", "create", "in-use")).status == 0
    with listening() as port:
        says(await ann.runs("agent", "connect", "ann/in-use", "--port", str(port)), "port_in_use", str(port))


async def test_the_local_port_is_closed(ann: Person) -> None:
    """If nothing listens on the port to offer, the error names the port."""
    port = free_port()
    ran = await ann.runs("agent", "host", "ann/web", "--port", str(port), "--wait", "0")
    says(ran, "local_port_closed", str(port))


@pytest.mark.timed
@pytest.mark.slow
async def test_no_live_host(ann: Person) -> None:
    """Without a host, connect prints one line while it waits, and then the error."""
    assert (await ann.runs("service", "create", "nobody")).status == 0
    ended = await ann.runs("agent", "connect", "ann/nobody")
    says(ended, "no_live_host", "ann/nobody", "for 10 s")
    says(await ann.runs("agent", "connect", "ann/nobody", "--wait", "0"), "no_live_host")


@pytest.mark.parametrize("command", _COMMANDS)
async def test_plain_http_to_another_machine(tmp_path: Path, command: str) -> None:
    """Plain http to another machine is refused, and the error names both ways out."""
    with listening() as port:
        ended = await Person(tmp_path).runs_here(
            *_with(_COMMANDS[command], port), "--relay", "http://relay.example.org"
        )
    says(ended, "plaintext_refused", "https://", "--insecure-plaintext")


async def test_credentials_that_others_can_read(newcomer: Person) -> None:
    """A file of tokens that others can read is refused with the command that fixes it, and that command does fix it."""
    assert (await newcomer.runs("sign-up", "modes")).status == 0
    file = newcomer.config / "credentials.json"
    file.chmod(0o644)
    ended = await newcomer.runs("whoami")
    says(ended, "not_logged_in", f"chmod 600 {file}")
    file.chmod(0o600)
    assert (await newcomer.runs("whoami", "--quiet")).out == "modes\n"


async def test_an_unknown_setting(newcomer: Person) -> None:
    """A mistyped key in the file is named with the likely intended one."""
    newcomer.config.mkdir()
    (newcomer.config / "config.toml").write_text('relai = "https://relay.example.org"\n')
    says(await newcomer.runs_here("whoami"), "bad_request", "relai", "Did you mean 'relay'?")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("sing-up", "bob"), "sign-up"),
        (("servce", "list"), "service"),
        (("service", "creat", "web"), "create"),
        (("agent", "conect", "ann/web"), "connect"),
        (("relay", "serv"), "serve"),
        (("whoami", "--jsn"), "--json"),
        (("agent", "host", "ann/web", "--prot", "80"), "--port"),
    ],
)
async def test_a_typo(newcomer: Person, typed: tuple[str, ...], meant: str) -> None:
    """The error for a typo suggests the likely intended word."""
    says(await newcomer.runs_here(*typed), "bad_request", meant)


@pytest.mark.parametrize("port", ["0", "65536", "http"])
async def test_a_port_that_is_none(newcomer: Person, port: str) -> None:
    """An invalid port is refused, and the error names the option."""
    says(await newcomer.runs_here("agent", "host", "ann/web", "--port", port), "bad_request", "'--port'")


async def test_an_error_as_json(newcomer: Person) -> None:
    """With --json a program gets the same error as JSON on stderr."""
    ended = await newcomer.runs("whoami", "--json")
    error = json.loads(ended.err)
    assert error["schema"] == 1
    assert error["error"]["code"] == "not_logged_in"
    assert set(error["error"]) == {"code", "text", "hop", "hint"}
    assert (ended.out, ended.status) == ("", 4)
