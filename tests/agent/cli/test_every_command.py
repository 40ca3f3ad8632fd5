"""Rules for every command, from any package, found by walking through all of them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from kdispatch.cli.commands import app
from tests.demo.processes import KDISPATCH, Program, Programs
from tests.docs.examples import free_ports

pytestmark = pytest.mark.slow  # each test starts several processes

#: What these print when they are up; they are ended afterwards. All others end by themselves.
STAYS: Final = {
    "relay serve": "listening on",
    "agent host": "is offered as",
    "agent connect": "is reached by",
    "dev": "is reached by",
}
#: What others need comes first, what takes it away last.
FIRST: Final = ("sign-up", "service create", "agent host")
LAST: Final = ("agent stop", "service withdraw", "service delete", "logout", "relay admin suspend")
#: A server for people and units: it answers with its log.
WITHOUT_JSON: Final = {"relay serve"}


#: What makes the id, or the code, that these need.
NEEDS: Final = {
    "invite accept": "invite create ann/web --for connect",
    "invite revoke": "invite create ann/web --for connect",
    "token revoke": "token create lost",
}
#: Once they ran nobody hosts any more.
END_A_HOST: Final = ("agent stop", "service withdraw")
#: Help is indented by two, and a terminal of 80 columns breaks longer lines.
WIDTH: Final = 76


def examples_of(command: Any) -> list[str]:
    return re.findall(r"Example: (kdispatch .+)", f"{command.help}\n{command.epilog}")


def walk(group: Any, context: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below a group, and the groups themselves, by their words."""
    yield path, group
    for name in group.commands:
        _, command, _ = group.resolve_command(context, [name])
        full = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            yield from walk(command, context, full)
        else:
            yield full, command


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    """Each command by its words, found outside of an event loop, because that reads the packages' entry points."""
    return {name: command for name, command in everything() if not hasattr(command, "commands")}


def everything() -> list[tuple[str, Any]]:
    top: Any = typer.main.get_command(app)
    return list(walk(top, top.make_context("kdispatch", ["--version"], resilient_parsing=True)))


def order(name: str) -> tuple[int, str]:
    if name in FIRST:
        return FIRST.index(name) - len(FIRST), name
    return (LAST.index(name) + 1 if name in LAST else 0), name


class Trials:
    """Runs examples one after the other against one relay; a host stays until it is withdrawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(("8443", "8080", "9090"), free_ports(3), strict=True))
        data = {"XDG_DATA_HOME": str(folder / "data"), "HOME": str(folder)}
        self.programs = Programs(folder, data)
        self.url = ""

    async def start(self) -> None:
        (self.folder / "data" / "kdispatch").mkdir(parents=True)
        relay = await self.programs.start(
            "relay", KDISPATCH, "relay", "serve", "--listen", "127.0.0.1:0", "--database", str(self.folder / "a.db")
        )
        self.url = await relay.says(r"listening on (\S+)")
        own = {
            "KDISPATCH_SERVE_DATABASE": str(self.folder / "a.db"),
            "KDISPATCH_RELAY": self.url,
            "KDISPATCH_SERVE_LISTEN": self.url.removeprefix("http://"),
        }
        self.programs.environment = {**self.programs.environment, **own}

    async def run(self, name: str, example: str) -> None:
        for file in re.findall(r"--token-file (\S+)", example):
            self.store_token(self.folder / file)
        if name in NEEDS:
            made = json.loads((await self.programs.run(KDISPATCH, *NEEDS[name].split(), "--json")).out)
            example = re.sub(r"\b[0-9a-f]{16}\b", made["id"], example)
            (self.folder / "code.txt").touch(0o600)
            (self.folder / "code.txt").write_text(made.get("code", ""))
        if name in END_A_HOST:
            example = re.sub(r"[0-9a-f]{32}", await self.live_host(), example)
        if name == "relay admin code revoke":
            made = await self.programs.run(KDISPATCH, "relay", "admin", "code", "list", "--quiet")
            example = re.sub(r"[0-9a-f]{16}", made.out.split()[0], example)
        line = example.replace("https://relay.example.org", self.url)
        for place in re.findall(r"(?<= )/\S+", line):  # no example touches this machine's own files
            mine = self.folder / "machine" / place[1:]
            mine.parent.mkdir(parents=True, exist_ok=True)
            line = line.replace(place, str(mine))
        for port, free in self.ports.items():
            line = re.sub(rf"\b{port}\b", free, line)
        if name in STAYS and "--detach" not in line:
            program = await self.programs.start(name, KDISPATCH, *line.split()[1:], cwd=self.folder)
            await program.says(STAYS[name])
            await self.end(name, program)
            return
        ended = await self.programs.run(KDISPATCH, *line.split()[1:], cwd=self.folder)
        assert ended.status == 0, f"{example}\n{ended.err}\n{self.programs.logs()}"

    async def end(self, name: str, program: Program) -> None:
        if name != "agent host":
            assert await program.end() == 0, program.log.read_text()

    async def live_host(self) -> str:
        """The id of the host that the example of 'agent host' left, or of another one."""
        hosts = (await self.programs.run(KDISPATCH, "service", "hosts", "ann/web", "--quiet")).out.split()
        if hosts:
            return hosts[0]
        again = ("agent", "host", "ann/web", "--port", self.ports["8080"], "--quiet")
        return await (await self.programs.start("another host", KDISPATCH, *again)).says(r"^([0-9a-f]{32})$")

    def store_token(self, file: Path) -> None:
        content = json.loads((self.folder / "config" / "credentials.json").read_text())
        file.touch(0o600)
        file.write_text(content["relays"][self.url]["admins"]["ann"])


async def test_every_example_of_every_help_runs(commands: dict[str, Any], tmp_path: Path) -> None:
    """Each command has an example in its help, and each example works at a real relay."""
    assert {"service delete", "relay serve", "agent host", "dev", "login"} <= commands.keys()
    trials = Trials(tmp_path)
    service = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", int(trials.ports["8080"]))
    async with service, trials.programs:
        await trials.start()
        for name in sorted(commands, key=order):
            examples = examples_of(commands[name])
            assert examples, f"the help of {name} has no example"
            for example in examples:
                assert example.startswith(f"kdispatch {name}")
                assert len(f"Example: {example}") <= WIDTH, f"the help of {name} breaks the line of its example"
                await trials.run(name, example)


def test_a_groups_example_is_one_of_its_commands(commands: dict[str, Any]) -> None:
    """The example in a group's help is one of its commands' examples, where it is run."""
    shown = {example for command in commands.values() for example in examples_of(command)}
    of_groups = {name: examples_of(command) for name, command in everything() if hasattr(command, "commands")}
    assert {"", "agent", "relay", "service"} <= of_groups.keys()
    assert of_groups[""]
    assert {example for examples in of_groups.values() for example in examples} <= shown


def test_every_command_that_answers_speaks_json(commands: dict[str, Any]) -> None:
    """Each command except the relay has --quiet and --json."""
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert name in WITHOUT_JSON or {"--quiet", "--json"} <= options, name


async def test_every_error_is_json_where_it_is_asked_for(commands: dict[str, Any], tmp_path: Path) -> None:
    """A wrong option with --json is one JSON object on stderr, with schema 1 and status 2."""
    programs = Programs(tmp_path)
    for name in sorted(commands.keys() - WITHOUT_JSON):
        ended = await programs.run(KDISPATCH, *name.split(), "--json", "--no-such-option")
        error = json.loads(ended.err)
        assert (ended.status, ended.out, error["schema"], error["error"]["code"]) == (2, "", 1, "bad_request"), name
