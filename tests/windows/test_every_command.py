"""Each command of the agent, right and wrong, has the code and the exit status of the page, on Linux and under Wine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.cli.test_every_command import everything
from tests.net.harness import Relay
from tests.windows.every_command import COMMANDS, PAGE, Linux, outcomes, rows_of
from tests.windows.running import Done, WindowsNetwork

pytestmark = pytest.mark.slow


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """A port at which something listens, and one that nothing else takes, and at which nothing does."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1], held.getsockname()[1]


def test_none_is_missing() -> None:
    """Each command of the agent is there at least twice: once it works, and once it fails."""
    statuses: dict[str, set[bool]] = {}
    names = [name for name, command in everything() if not hasattr(command, "commands") and name.split()[0] != "relay"]
    for row in rows_of(PAGE.read_text()):
        for name in names:
            if row.command.split(" < ")[0].startswith(name):
                statuses.setdefault(name, set()).add(row.status == 0)
    # dev stays until it is ended; test_dev has it. service withdraw needs the id of a host: test_withdraw.
    stays = {"dev", "service withdraw"}
    assert {name: statuses.get(name) for name in names} == {
        name: {False} if name in stays else {True, False} for name in names
    }


def test_the_page_has_these() -> None:
    """The page's table is of the commands that the tests run."""
    assert [row.command for row in rows_of(PAGE.read_text())] == list(COMMANDS)


async def test_on_linux(own_relay: Relay, tmp_path: Path, ports: tuple[int, int]) -> None:
    """Linux has the page's codes and statuses."""
    run = Linux(tmp_path, own_relay.url).run
    assert await outcomes(run, *ports, "bob") == rows_of(PAGE.read_text())


async def test_under_wine(network: WindowsNetwork, own_relay: Relay, ports: tuple[int, int]) -> None:
    """Windows has the page's codes and statuses."""
    network.environment |= {"KDISPATCH_TOKEN": ""}

    async def run(words: list[str], given: str) -> Done:
        if "--detach" not in words:
            return await network.run(*words, given=given)
        process = network.start(words[0], *words)
        status = await process.ended()
        return Done(status, await process.output(), process.err)

    async with asyncio.timeout(600):
        assert await outcomes(run, *ports, "bob") == rows_of(PAGE.read_text())
