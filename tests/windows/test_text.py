"""Text under Wine: what commands and agents write to pipes, files and consoles, and what they read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from kdispatch.machine.private_files import write_private
from tests.net.harness import Relay
from tests.net.tcp import echo, service
from tests.windows.environment import windows_path
from tests.windows.running import WindowsNetwork

pytestmark = pytest.mark.slow

#: Letters of the system's code page (cp1252), of another one, and of none.
_TEXT: Final = "é-Ж-…-🚇"
#: The same as a command writes it in an error: it escapes nothing of it.
_UNKNOWN: Final = f"No such command '{_TEXT}'."


async def test_pipes(network: WindowsNetwork) -> None:
    """A pipe gets UTF-8: results and errors, for people and as JSON."""
    failed = await network.run(_TEXT)
    assert (failed.status, _UNKNOWN in failed.err) == (2, True), failed
    told = await network.run("agent", "connect", _TEXT, "--json")
    assert _TEXT in json.loads(told.err)["error"]["text"]
    assert "sha256:…" in (await network.run("agent", "host", "--help")).out


async def test_files(network: WindowsNetwork) -> None:
    """A file that cmd.exe directs output to gets UTF-8."""
    file = network.folder / "output.txt"
    line = f"{_python(network)} -m kdispatch {_TEXT} > {windows_path(file)} 2>&1"
    assert (await network.start_wine("cmd", "cmd.exe", "/c", line).done()).status == 2
    assert _UNKNOWN in file.read_text("utf-8")


async def test_a_log(network: WindowsNetwork) -> None:
    """An agent's log is UTF-8."""
    name = await network.service()
    (network.folder / _TEXT).touch()
    state = windows_path(network.folder / _TEXT / "no folder")
    async with service(echo) as running:
        arguments = ("agent", "host", name, "--port", str(running.port))
        host = network.start("host", *arguments, KDISPATCH_STATE_DIR=state)
        await host.says("is offered as")
        await host.says(f"{_TEXT}.* cannot be written")


async def test_a_console(network: WindowsNetwork) -> None:
    """A console shows every character."""
    shown = network.console("help", "agent", "host", "--help")
    await shown.says("sha256:…")
    assert await shown.ended() == 0
    failed = network.console("unknown", _TEXT)
    await failed.says("No such command 'é-Ж-…-")
    assert await failed.ended() == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
async def test_a_token_from_a_pipe(encoding: str, network: WindowsNetwork, own_relay: Relay) -> None:
    """A token from standard input may have a byte order mark and Windows' line ends, as PowerShell writes them."""
    network.environment["KDISPATCH_TOKEN"] = ""
    given = f"{own_relay.token}\r\n".encode(encoding)
    assert (await network.run("login", given=given)).status == 0
    assert (await network.run("whoami", "--quiet", "--token", "-", given=given)).out == "ann\n"


async def test_no_input(network: WindowsNetwork) -> None:
    """Windows takes NUL for a terminal. A command that reads a token there finds none, and asks nobody."""
    network.environment["KDISPATCH_TOKEN"] = ""
    line = f"{_python(network)} -m kdispatch login < NUL"
    done = await network.start_wine("cmd", "cmd.exe", "/c", line).done()
    assert "[token_refused]" in done.err, done
    assert done.status == 4


async def test_settings(network: WindowsNetwork) -> None:
    """config.toml may have a byte order mark and Windows' line ends, and names files with any letters."""
    write_private(network.folder / "the settings" / "config.toml", f"ca_file = '{_TEXT}.pem'\r\n".encode("utf-8-sig"))
    told = await network.run("whoami", "--relay", network.url.replace("http:", "https:"))
    assert told.status == 2, told
    assert f"{_TEXT}.pem" in told.err


def _python(network: WindowsNetwork) -> str:
    [_, program] = network.windows.command()
    return windows_path(Path(program))
