"""Threat 5: tokens in logs, URLs and the process list."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from kdispatch_protocol.tokens import format_token
from kdispatch_relay.api.routes import ROUTES
from tests.agent.cli.test_every_command import everything
from tests.edges.asking import ask, head
from tests.edges.conftest import EdgeOf
from tests.edges.servers import Caddy, Edge
from tests.first_minutes.person import Person
from tests.first_minutes.watch import Watch, token_of
from tests.net.harness import Network, Relay, sizes
from tests.net.tcp import echo, service

pytestmark = pytest.mark.slow

#: Every command with its arguments, except those of ``_MAKES``. They act on ``bob/canary`` or on nothing.
_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "sign-up": ("bob",),
    "whoami": (),
    "login": (),
    "audit": (),
    "status": (),
    "service list": (),
    "service show": ("bob/canary",),
    "service hosts": ("bob/canary",),
    "service clients": ("bob/canary",),
    "service update": ("bob/canary", "--access", "token"),
    "service delete": ("bob/none", "--yes"),
    "service withdraw": ("0" * 32,),
    "service create": ("canary",),
    "service rotate": ("bob/none",),
    "token list": (),
    "token create": ("more", "--for", "host", "--service", "none"),
    "token revoke": ("0" * 16, "--yes"),
    "invite list": ("bob/canary",),
    "invite create": ("bob/none", "--for", "host"),
    "invite revoke": ("bob/canary", "0" * 16),
    "invite accept": ("@{code}",),
    "agent host": ("bob/none", "--port", "{port}", "--wait", "0"),
    "agent connect": ("bob/none", "--wait", "0"),
    "agent stop": ("bob/none",),
    "doctor": ("--bundle", "{bundle}"),
    "logout": ("--yes",),
}
#: These use the relay's own database, and take no token; the test searches for the tokens that they create, too.
_OF_THE_OPERATOR: Final = ("relay", "dev")
#: These take no token of an account.
_NO_TOKEN: Final = frozenset({"sign-up", "invite accept", "logout", "status", "agent stop"})


#: The commands of the small form; the full form has all.
_FEW: Final = ("invite accept", "sign-up", "login", "token create", "service rotate", "agent connect", "logout")


@dataclass(frozen=True)
class _Size:
    """The commands of a form, and how many kinds of tokens each command and each route gets."""

    names: Collection[str]
    commands: int
    requests: int


@pytest.fixture(scope="module")
def names() -> list[str]:
    """The names of all commands, found outside of an event loop."""
    return [name for name, command in everything() if not hasattr(command, "commands")]


class _Canaries:
    """A person with tokens of all kinds; each token may appear only where it was shown."""

    def __init__(self, person: Person, watch: Watch) -> None:
        self.person = person
        self.watch = watch

    async def made(self, name: str, *command: str, field: str = "token") -> dict[str, Any]:
        """Run a command that shows a new token once, on standard output only; return its output."""
        ended = self.watch.ended(await self.person.runs(*command, "--json"), shows=True)
        assert ended.status == 0, str(ended)
        found: dict[str, Any] = json.loads(ended.out)
        self.watch.learn(name, found[field])
        return found

    def file(self, token: str) -> str:
        """Write a token to a new file and return the path."""
        file = self.person.home / secrets.token_hex(4)
        file.touch(mode=0o600)
        file.write_text(token + "\n")
        return str(file)

    async def runs(self, name: str, arguments: tuple[str, ...], token: str, way: int) -> None:
        """Run a command with a token of another account, passed in one of the four ways to pass one."""
        debug = {"KDISPATCH_DEBUG": "1"}
        ways: tuple[tuple[tuple[str, ...], str, dict[str, str]], ...] = (
            (("--token-file", self.file(token)), "", debug),
            (("--token", "-"), token, debug),
            (("--token", f"@{self.file(token)}", "--json"), "", {}),
            ((), "", {"KDISPATCH_TOKEN": token, **debug}),
        )
        options, given, environment = ways[3 if name in _NO_TOKEN else way]
        options = tuple(option for option in options if name != "status" or option != "--json")
        self.watch.ended(
            await self.person.runs(*name.split(), *arguments, *options, given=given, environment=environment)
        )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", sizes(_Size(_FEW, 1, 1), _Size(_ARGUMENTS.keys(), 8, 9)))
async def test_a_canary_through_everything(
    size: _Size, names: list[str], edge_of: EdgeOf, tmp_path: Path, watch: Watch
) -> None:
    """Through all commands and routes, behind Caddy, no token reaches outputs, logs, command lines or the database."""
    assert {name for name in names if name.split()[0] not in _OF_THE_OPERATOR} == _ARGUMENTS.keys()
    operator = tmp_path / "operator"
    operator.touch(mode=0o600)
    operator.write_text(watch.tokens.setdefault("the operator's", f"adm_{secrets.token_hex(32)}"))
    relay = Relay(tmp_path)
    try:
        await relay.start(
            "-v", "--log-format", "json", "--operator-token-file", str(operator), "--limit-bad-tokens", "0"
        )
        watch.learn("the first admin's", relay.token)
        edge = edge_of(Caddy, relay.address.port, talkative=True)
        await edge.start()
        person = Person(tmp_path / "bob", edge.url)
        person.environment |= edge.trust
        await _live(_Canaries(person, watch), relay, size)
        await _requests(edge, watch, size.requests)
        relay.stop()
        watch.saw("the relay's log", relay.running.text)
        edge.stop()
        for name, text in edge.logs.items():
            watch.saw(f"Caddy's {name}", text)
        assert "/api/v1/whoami" in "".join(edge.logs.values()), "nothing is logged, so that this test can't fail"
        _read(watch, [*tmp_path.glob("relay.db*"), *person.home.rglob("*.log")])  # noqa: ASYNC240 - nothing else runs
    finally:
        relay.stop(signal.SIGKILL)
    assert not watch.leaks(), watch.leaks()[0]


def _read(watch: Watch, files: list[Path]) -> None:
    for file in files:
        watch.saw(file.name, file.read_bytes().decode("latin-1"))


async def _live(canaries: _Canaries, relay: Relay, size: _Size) -> None:
    """Create tokens in every way, host and connect with them, and run every command."""
    person, watch = canaries.person, canaries.watch
    await canaries.made("the admin's", "sign-up", "bob")
    svc = await canaries.made("the service's", "service", "create", "canary", "--access", "token")
    svc = await canaries.made("the rotated", "service", "rotate", "bob/canary")
    await canaries.made("a host's", "token", "create", "h", "--for", "host", "--service", "canary")
    cli = await canaries.made("a client's", "token", "create", "c", "--for", "connect", "--service", "canary")
    code = await canaries.made(
        "a code", "invite", "create", "bob/canary", "--for", "connect", "--uses", "9", field="code"
    )
    accepted = Person(person.home / "guest", person.environment["KDISPATCH_RELAY"])
    guest = _Canaries(accepted, watch)
    accepted.environment |= {k: v for k, v in person.environment.items() if k not in accepted.environment}
    await guest.made("an accepted one", "invite", "accept", f"@{canaries.file(code['code'])}")
    wrong = [
        watch.learn(f"an unknown {kind}", format_token(kind, secrets.token_bytes(32)))
        for kind in ("adm", "svc", "cli", "inv")
    ]
    async with service(echo) as local:
        network = Network(person.home, "", "")
        svc_file = canaries.file(svc["token"])
        network.environment = dict(person.environment)
        try:
            host = network.agent(
                "host", "host", "bob/canary", "--port", str(local.port), "-v", "--json", "--token-file", svc_file
            )  # fmt: skip
            offered = json.loads((await host.says(r"\{.*\"withdraw_token\".*\}"))[0])
            watch.learn("the host's withdraw", offered["withdraw_token"])
            client = network.agent(
                "connect", "connect", "bob/canary", "-v", "--token-file", canaries.file(cli["token"])
            )  # fmt: skip
            await client.says("is reached by")
            await _every_command(canaries, wrong, canaries.file(code["code"]), local.port, size)
            client.stop()
            watch.saw("the client's output", client.text)
            host.stop()
            watch.saw("the host's log", host.err)
        finally:
            network.stop()


async def _every_command(canaries: _Canaries, wrong: list[str], code: str, port: int, size: _Size) -> None:
    """Run each command with unknown tokens, three at a time."""
    turn = asyncio.Semaphore(3)

    async def one(at: int, name: str, arguments: tuple[str, ...], pair: int) -> None:
        bundle = canaries.person.home / f"bundle-{at}-{pair}.zip"
        filled = tuple(each.format(code=code, port=port, bundle=bundle) for each in arguments)
        async with turn:
            await canaries.runs(name, filled, wrong[(at + pair) % 4], (at + pair + pair // 4) % 4)
        if bundle.exists():
            canaries.watch.saw_archive(bundle)

    rows = [(at, name, arguments) for at, (name, arguments) in enumerate(_ARGUMENTS.items()) if name in size.names]
    await asyncio.gather(*(one(*row, pair) for row in rows if row[1] != "logout" for pair in range(size.commands)))
    await one(0, "logout", _ARGUMENTS["logout"], 0)


async def _requests(edge: Edge, watch: Watch, each: int) -> None:
    """Call every route with tokens in the Authorization header."""
    tokens = list(watch.tokens.values())
    made = ("/api/v1/admins", "/api/v1/services", "/tokens", "/invites", "/accept", "/rotate")
    for number, route in enumerate(ROUTES):
        path = route.path.format(handle="bob", name="canary", host="0" * 32, token="0" * 16, invite="0" * 16)
        for at in range(number, number + each):
            bearer = f"Authorization: Bearer {tokens[at % len(tokens)]}"
            body = b"{}" if route.method == "POST" and path.endswith(made) else b""
            more = ("Content-Type: application/json", f"Content-Length: {len(body)}")
            if not path.endswith("/rotate"):  # with a valid token the answer rightly shows a new one
                watch.saw(
                    f"the answer to {route.label}",
                    (await ask(edge, head(route.method, path, bearer, *more) + body)).text,
                )


async def test_an_argument_is_hidden(network: Network) -> None:
    """A token on the command line is no longer in the process list once the agent is ready."""
    async with service(echo) as local:
        name = await network.service()
        token = network.environment["KDISPATCH_TOKEN"]
        host = await network.host(name, local.port, "--token", token)
        line = Path(f"/proc/{host.pid}/cmdline").read_bytes()  # noqa: ASYNC240 - not of a disk
        assert b"--token" in line
        shown = token[4:].encode() in line
        assert not shown, "the process list shows the token"


async def test_a_token_in_a_names_place(tmp_path: Path) -> None:
    """An error about a token in the place of a name does not contain the token."""
    person = Person(tmp_path, "http://127.0.0.1:9")
    token = token_of("adm", 5)
    for command in (("service", "show", token), ("sign-up", token), ("token", "revoke", token, "--yes")):
        ended = await person.runs(*command)
        assert ended.status and token[4:30] not in ended.out + ended.err, str(ended)
