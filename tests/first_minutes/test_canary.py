"""Tokens through every command, route and failure: they appear once, where they are created, and nowhere else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from tests.first_minutes.person import Person
from tests.first_minutes.test_mistakes import free_port, listening, web_server
from tests.first_minutes.watch import Watch, token_of
from tests.net.harness import Process, Relay, sizes


async def _every_command(person: Person, watch: Watch, port: int, each: int) -> None:
    """Run each command with the stored token, and with ``each`` pairs of another token and a way to pass it."""
    kinds = ("adm", "svc", "cli", "hst")
    wrong = [watch.learn(f"an unknown {kind}", token_of(kind, at)) for at, kind in enumerate(kinds)]
    file = person.home / "token"
    file.touch(mode=0o600)
    commands = [
        ("whoami",),
        ("service", "list"),
        ("service", "show", "ann/canary"),
        ("service", "hosts", "ann/canary"),
        ("service", "create", "canary"),
        ("service", "delete", "ann/none", "--yes"),
        ("service", "withdraw", "0" * 32),
        ("login",),
        ("agent", "host", "ann/none", "--port", str(port)),
        ("agent", "connect", "ann/none", "--wait", "0"),
        ("agent", "host", "ann/canary", "--port", str(free_port())),
    ]
    for row, command in enumerate(commands):
        if command != ("login",):
            watch.ended(await person.runs(*command))
        for pair in range(row, row + each):
            token, way = wrong[pair % 4], (pair + pair // 4) % 4
            file.write_text(token + "\n")
            ways = [
                ((*command, "--token-file", str(file)), "", {}),
                ((*command, "--token", "-"), token, {"KDISPATCH_DEBUG": "1"}),
                ((*command, "--json", "--token", f"@{file}"), "", {}),
                ((*command, "--quiet"), "", {"KDISPATCH_TOKEN": token[:-1], "KDISPATCH_DEBUG": "1"}),
            ]
            arguments, given, environment = ways[way]
            ended = watch.ended(await person.runs(*arguments, given=given, environment=environment))
            # Public data needs no token: ``show`` and ``hosts`` may succeed.
            assert ended.status or command[1] in {"show", "hosts"}, str(ended)


async def _every_route(url: str, watch: Watch) -> None:
    """Call the REST API with tokens in the right and in wrong places."""
    tokens = list(watch.tokens.values())
    routes = [
        ("GET", "/whoami"),
        ("POST", "/admins"),
        ("POST", "/services"),
        ("GET", "/services"),
        ("GET", "/services/ann/canary"),
        ("GET", "/services/ann/canary/hosts"),
        ("DELETE", "/services/ann/none"),
        ("DELETE", f"/hosts/{'0' * 32}"),
        ("GET", "/tunnel"),
        ("GET", "/nothing"),
        ("PUT", "/whoami"),
    ]
    async with aiohttp.ClientSession() as session:
        for method, path in routes:
            for token in tokens:
                strange: dict[str, object] = {"name": token, "handle": token, token: token}
                for request in (
                    {"headers": {"Authorization": f"Bearer {token[:-1]}"}},
                    {"headers": {"Authorization": f"Basic {token}"}, "json": strange},
                    {"headers": {"Authorization": f"Bearer {token} x"}},
                    {"params": {"token": token}},
                    {"json": strange},
                    {"data": token, "headers": {"Content-Type": "application/json"}},
                ):
                    async with session.request(method, f"{url}/api/v1{path}", **request) as response:
                        watch.saw(f"the answer to {method} {path}", f"{response.headers} {await response.text()}")
            for token in tokens:
                async with session.request(method, f"{url}/api/v1/{token}") as response:
                    watch.saw("the answer to a token as a path", f"{response.headers} {await response.text()}")


async def _every_failure_of_the_way(person: Person, watch: Watch, port: int) -> None:
    """Run commands with good tokens against a missing relay, a web server, and plain http."""
    async with web_server() as no_relay:
        for relay in (f"http://127.0.0.1:{free_port()}", no_relay, "http://relay.example.org", "https://a b"):
            for command in (
                ("whoami",),
                ("service", "create", "x"),
                ("agent", "host", "ann/canary", "--port", str(port), "--wait", "0"),
                ("agent", "connect", "ann/canary", "--wait", "0"),
            ):
                token = watch.tokens["the admin's"]
                ended = await person.runs(
                    *command, "--relay", relay, environment={"KDISPATCH_TOKEN": token, "KDISPATCH_DEBUG": "1"}
                )
                assert watch.ended(ended).status, str(ended)


@pytest.mark.slow
@pytest.mark.parametrize("each", sizes(1, 16))
async def test_tokens_stay_where_they_belong(own_relay: Relay, tmp_path: Path, watch: Watch, each: int) -> None:
    """No token appears in output (except where shown once), logs, command lines, tracebacks or the database."""
    own_relay.stop()
    await own_relay.start("-v", "--log-format", "json")
    bob = Person(tmp_path / "bob", own_relay.url)
    signed = watch.ended(await bob.runs("sign-up", "bob", "--json"), shows=True)
    assert watch.learn("the admin's", json.loads(signed.out)["token"]) not in signed.err
    made = watch.ended(await bob.runs("service", "create", "canary", "--json"), shows=True)
    watch.learn("the service's", json.loads(made.out)["token"])
    watch.learn("the other admin's", own_relay.token)
    with listening() as port:
        host = Process(
            "host",
            ["kdispatch", "agent", "host", "bob/canary", "--port", str(port), "--json", "-v"],
            tmp_path,
            bob.environment,
        )
        try:
            offered = json.loads((await host.says(r"\{.*\"withdraw_token\".*\}"))[0])
            watch.learn("the host's", offered["withdraw_token"])
            connect = await bob.runs("agent", "connect", "bob/canary", "--detach", "--json")
            watch.ended(connect)
            assert connect.status == 0, str(connect)
            await _every_command(bob, watch, port, each)
            await _every_route(own_relay.url, watch)
            await _every_failure_of_the_way(bob, watch, port)
            hst = bob.home / "hst"
            hst.touch(mode=0o600)
            hst.write_text(offered["withdraw_token"])
            withdrawn = await bob.runs("service", "withdraw", offered["host"], "--token-file", str(hst))
            assert watch.ended(withdrawn).status == 0, str(withdrawn)
            assert await host.ended() == 1, host.text
            stopped = await bob.runs("agent", "stop", "bob/canary")
            assert watch.ended(stopped).status == 0, str(stopped)
            watch.ended(await bob.runs("logout", "--yes"))
        finally:
            if host.status is None:
                host.stop()
            watch.saw("the host's stderr", host.err)
            await bob.runs("agent", "stop", "bob/canary")
    own_relay.stop()
    watch.saw("the relay's log", own_relay.running.text)
    _read(watch, bob.home / "state", "*.log")
    _read(watch, tmp_path, "relay.db*")
    assert not watch.leaks()


def _read(watch: Watch, folder: Path, pattern: str) -> None:
    found = list(folder.rglob(pattern))
    assert found
    for file in found:
        watch.saw(f"the file {file.name}", file.read_bytes().decode("latin-1"))


async def test_the_watch_finds_what_leaks(watch: Watch) -> None:
    """The watch finds part of a token in an output, and a whole token in a command line."""
    token = watch.learn("a planted", token_of("svc", 9))
    watch.saw("a log", f"trace: {token[10:40]}…")
    assert len(watch.leaks()) == 1
    other = watch.learn("another", token_of("adm", 8))
    process = await asyncio.create_subprocess_exec("sleep", "0.3", env={"X": "y"})
    assert len(watch.leaks()) == 1
    shown = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.3", other)
    await asyncio.gather(process.wait(), shown.wait())
    assert len(watch.leaks()) >= 2
