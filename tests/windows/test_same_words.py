"""Each command, right and wrong, says the same under Wine as on Linux, with the same codes and exit statuses."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.demo.processes import KDISPATCH
from tests.guards.environment import inherited
from tests.net.harness import Network, Relay
from tests.windows.environment import windows_path
from tests.windows.running import Done, WindowsNetwork

pytestmark = pytest.mark.slow

#: A service that no host offers, a port on which nothing listens, one that is taken, and a folder for files.
_COMMANDS: Final = (
    "--version",
    "--help",
    "agent host --help",
    "frobnicate",
    "whoami",
    "whoami --json",
    "whoami --relay ftp://relay.example.org",
    "whoami --relay http://127.0.0.1:{closed}",
    "whoami --relay http://nowhere.invalid",
    "whoami --proxy http://127.0.0.1:{closed}",
    "whoami --proxy socks5://127.0.0.1:{closed}",
    "whoami --token-file {folder}missing.txt",
    "whoami --ca-file {folder}missing.pem",
    "status",
    "status --json",
    "service show {service}",
    "service hosts {service}",
    "service hosts {service} --json",
    "service clients {service}",
    "service create Not_A_Name!",
    "service withdraw 0123456789abcdef0123456789abcdef",
    "service update {service} --access token",
    "token create laptop",
    "invite create {service} --for connect",
    "agent host {service}",
    "agent host {service} --port 70000",
    "agent host {service} --port 80 --grace soon",
    "agent host {service} --port {closed} --wait 0",
    "agent host {service} --port {closed} --wait 0 --address nowhere.invalid",
    "agent host {service} --port {closed} --wait 0 --detach",
    "agent host {service} --port {taken} --relay http://127.0.0.1:{closed} --wait 0",
    "agent connect {service} --wait 0",
    "agent connect {service} --wait 0 --json",
    "agent connect {service} --wait 0 --detach",
    "agent connect nobody/nothing --wait 0",
    "agent connect {service} --port {taken} --wait 0",
    "agent connect {service} --address 192.0.2.1 --wait 0",
    "agent connect {service} --address nowhere.invalid --wait 0",
    "agent stop nothing",
    "doctor --relay http://127.0.0.1:{closed}",
    "logout --yes",
)


@pytest.fixture
def closed() -> Iterator[int]:
    """A port on which nothing listens, kept from others."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("command", _COMMANDS)
async def test_same_words(
    command: str, network: WindowsNetwork, shared_relay: Relay, tmp_path: Path, closed: int, taken: int
) -> None:
    """Output, errors and exit status are those of Linux, but for the names of files."""
    linux = Network(tmp_path / "on-linux", shared_relay.url, shared_relay.token)
    linux.folder.mkdir()
    service = await linux.service()

    def words(folder: str) -> list[str]:
        return command.format(service=service, closed=closed, taken=taken, folder=folder).split()

    there = await network.run(*words(windows_path(tmp_path) + "\\"))
    done = await asyncio.to_thread(
        subprocess.run,
        [KDISPATCH, *words(f"{tmp_path}/")],
        env={**inherited(), **linux.environment, "COLUMNS": os.environ.get("COLUMNS", "80")},
        input="", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    here = Done(done.returncode, done.stdout, done.stderr)
    assert _plain(there, network, tmp_path) == _plain(here, linux, tmp_path)


def _plain(done: Done, network: Network, folder: Path) -> Done:
    """Without what differs from one run to the next: paths, ids, tokens, times."""

    def plain(text: str) -> str:
        for name in ("KDISPATCH_CONFIG_DIR", "KDISPATCH_STATE_DIR"):
            own = network.environment[name]
            text = text.replace(own.replace("\\", "\\\\"), name).replace(own, name)
        text = text.replace(windows_path(folder), "FOLDER").replace(str(folder), "FOLDER").replace("\\", "/")
        text = re.sub(r"\b(?:adm|svc|cli|inv)_[-_0-9A-Za-z]{20,}", "TOKEN", text)
        text = re.sub(r"(?m)^OK +descriptors.*$", "DESCRIPTORS", text)  # Windows has no limit on them
        text = re.sub(r"\b[0-9a-f]{12,32}\b", "ID", text)
        return re.sub(r"\d{4}-\d\d-\d\d.\d\d:\d\d(:\d\d(\.\d+)?)?Z?|\b\d+(\.\d+)? ms\b", "TIME", text)

    return Done(done.status, plain(done.out), plain(done.err))
