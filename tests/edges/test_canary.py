"""Tokens that pass a server in front of the relay appear in no log of it, of the relay, or of agents."""

from __future__ import annotations

import json
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.edges.asking import UPGRADE, ask, break_off, head
from tests.edges.conftest import EdgeOf
from tests.edges.more_servers import MORE, Stunnel
from tests.edges.servers import EDGES, Edge, Haproxy, Nginx
from tests.first_minutes.person import KDISPATCH, Ended, Person
from tests.first_minutes.watch import Watch, token_of
from tests.net.harness import Process, Relay, sizes
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow

_ALL: Final = (*EDGES, *(kind for kind in MORE if kind is not Stunnel))  # stunnel logs no requests
_KINDS: Final = ("adm", "svc", "cli", "hst", "inv")
#: If the relay is away, HAProxy tries three times, with pauses of this length or one second.
_QUICK: Final[dict[type[Edge], dict[str, str]]] = {Haproxy: {"timeout connect 5s": "timeout connect 50ms"}}


@dataclass(frozen=True)
class _Size:
    """The servers, those that people use, the number of wrong tokens, and the requests for each token."""

    kinds: tuple[type[Edge], ...]
    through: tuple[type[Edge], ...]
    wrong: int
    each: int


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", sizes(_Size(EDGES, (Nginx,), 1, 1), _Size(_ALL, _ALL, 5, 10)))
async def test_tokens_are_in_no_log(size: _Size, edge_of: EdgeOf, tmp_path: Path, watch: Watch) -> None:
    """No token, known or unknown, is in any log, whether its request succeeds, is refused or breaks off."""
    for number, kind in enumerate(_KINDS):
        watch.learn(f"an unknown {kind}", token_of(kind, 100 + number))
    operator = tmp_path / "operator"
    operator.touch(mode=0o600)
    operator.write_text(secrets.token_hex(32))
    watch.tokens["the operator's"] = operator.read_text()
    relay, people = Relay(tmp_path), list[_Person]()
    try:
        await relay.start("--verbose", "--operator-token-file", str(operator))
        watch.learn("the first admin's", relay.token)
        edges = [edge_of(kind, relay.address.port, changes=_QUICK.get(kind, {}), talkative=True) for kind in size.kinds]
        for edge in edges:
            await edge.start()
        for edge in edges:
            if isinstance(edge, size.through):
                people.append(_Person(tmp_path / f"by-{edge.name}", edge, watch))
                await _visit(people[-1], edge, size.wrong, watch)
        for edge in edges:
            await _requests(edge, size.each, watch)
        relay.stop(signal.SIGKILL)
        watch.saw("the relay's log", relay.running.text)
        for person in people:
            await person.does(6, "whoami")
            for log in person.home.rglob("*.log"):
                watch.saw(log.name, log.read_text())
        for edge in edges:
            await _requests(edge, size.each, watch)
            edge.stop()
            for name, text in edge.logs.items():
                watch.saw(f"{edge.name}'s {name}", text)
            assert "whoami" in "".join(edge.logs.values()), "nothing is logged, so that this test can't fail"
    finally:
        relay.stop(signal.SIGKILL)
    assert not watch.leaks()


async def _requests(edge: Edge, each: int, watch: Watch) -> None:
    """Send all tokens by hand, each in ``each`` kinds of requests, and in as many that break off."""
    for number, token in enumerate(watch.tokens.values()):
        bearer = f"Authorization: Bearer {token}"
        requests = [
            head("GET", "/api/v1/whoami", bearer),
            head("GET", "/api/v1/relay/state", bearer),
            head("GET", "/metrics", bearer),
            head("PUT", "/api/v1/services", bearer, "Content-Length: 0"),
            head("DELETE", f"/api/v1/hosts/{'0' * 32}", bearer),
            head("GET", "/api/v1/tunnel", bearer, *UPGRADE[1:]),
            head("POST", "/api/v1/admins", bearer, "Content-Length: 70000") + b"x" * 70_000,
            head("GET", "/api/v1/whoami", bearer, "Content-Length: x"),
            head("GET", "/api/v1/whoami", bearer, f"X-Long: {'x' * 40_000}"),
            head("GE T", "/api/v1/whoami", bearer),
        ]
        broken = [
            f"GET /api/v1/whoami HTTP/1.1\r\nHost: localhost\r\n{bearer}".encode(),
            head("POST", "/api/v1/services", bearer, "Content-Length: 100") + b"{",
            head("GET", "/api/v1/tunnel", bearer, *UPGRADE),
        ]
        for at in range(number, number + each):
            watch.saw("an answer", (await ask(edge, requests[at % len(requests)])).text)
            await break_off(edge, broken[at % len(broken)])


class _Person(Person):
    """A person who uses a relay through a server in front of it, with tracebacks on."""

    def __init__(self, folder: Path, edge: Edge, watch: Watch) -> None:
        super().__init__(folder, edge.url)
        self.environment |= {**edge.trust, "KDISPATCH_DEBUG": "1"}
        self.name = edge.name
        self.service = f"{edge.name}/canary"
        self._watch = watch
        self.agents: list[Process] = []

    def keeps(self, name: str, token: str) -> str:
        """Write a token to its own file; returns the file."""
        file = self.home / name
        file.touch(mode=0o600)
        file.write_text(token)
        return str(file)

    async def does(self, status: int, *arguments: str, shows: bool = False) -> Ended:
        """Run a command and check its exit status; ``shows`` if its standard output is to show a token."""
        ended = self._watch.ended(await self.runs(*arguments), shows=shows)
        assert ended.status == status, str(ended)
        return ended

    def agent(self, kind: str, *arguments: str) -> Process:
        """Start an agent at its most verbose level."""
        command = [KDISPATCH, "agent", kind, self.service, "--verbose", "--json", *arguments]
        self.agents.append(Process(kind, command, self.home, self.environment))
        return self.agents[-1]

    def leave(self) -> None:
        """End the agents, and record their output."""
        for agent in self.agents:
            agent.stop(signal.SIGKILL)
            self._watch.saw(f"stderr of {agent.name}", agent.err)


async def _visit(person: _Person, edge: Edge, wrong: int, watch: Watch) -> None:
    """Sign up, host, connect, lose all sessions, use wrong tokens, withdraw the host."""
    signed = await person.does(0, "sign-up", person.name, "--json", shows=True)
    watch.learn(f"the admin's by {edge.name}", json.loads(signed.out)["token"])
    made = await person.does(0, "service", "create", "canary", "--json", shows=True)
    svc = person.keeps("svc", watch.learn(f"the service's by {edge.name}", json.loads(made.out)["token"]))
    try:
        async with service(echo) as echoing:
            host = person.agent("host", "--port", str(echoing.port), "--token-file", svc)
            offered = json.loads((await host.says(r"\{.*\"withdraw_token\".*\}"))[0])
            hst = person.keeps("hst", watch.learn(f"the host's by {edge.name}", offered["withdraw_token"]))
            connect = person.agent("connect", "--token", f"@{person.keeps('adm', json.loads(signed.out)['token'])}")
            port = json.loads((await connect.says(r"\{.*\"port\".*\}"))[0])["port"]
            async with await Tcp.connect(port) as tcp:
                await tcp.send(b"x")
                assert await tcp.receive() == b"x"
                await edge.crash()
                await connect.says("is back", wait=40)
                await host.says("is back", wait=40)
                await tcp.send(b"y")
                assert await tcp.receive() == b"y"
            await connect.says("sent")
            await _wrong_tokens(person, svc, echoing.port, wrong, watch)
            if wrong > 1:
                await _asks_the_doctor(person, watch)
            await person.does(0, "service", "withdraw", offered["host"], "--token-file", hst)
            assert await host.ended() == 1
    finally:
        person.leave()


async def _asks_the_doctor(person: _Person, watch: Watch) -> None:
    bundle = person.home / "bundle.zip"
    checked = watch.ended(await person.runs("doctor", person.service, "--bundle", str(bundle)))
    assert checked.status in {0, 7}, str(checked)
    watch.saw_archive(bundle)


async def _wrong_tokens(person: _Person, svc: str, port: int, wrong: int, watch: Watch) -> None:
    """Use a token of the wrong kind, and ``wrong`` unknown ones, by REST and by a tunnel."""
    if wrong > 1:
        await person.does(5, "service", "create", "more", "--token-file", svc)
    commands = (
        ("svc", 4, ("agent", "host", person.service, "--port", str(port), "--wait", "0")),
        ("adm", 4, ("whoami",)),
        ("cli", 4, ("agent", "connect", person.service, "--wait", "0")),
        ("hst", 3, ("service", "withdraw", "0" * 32)),
        ("inv", 4, ("service", "delete", person.service, "--yes")),
    )
    for kind, status, command in commands[:wrong]:
        file = person.keeps(f"unknown-{kind}", watch.tokens[f"an unknown {kind}"])
        await person.does(status, *command, "--token-file", file)
