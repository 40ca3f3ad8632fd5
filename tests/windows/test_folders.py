"""Folders under Wine without a variable that names them: where agents keep their files, for users of any name."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.harness import Relay
from tests.net.tcp import echo, service
from tests.windows.environment import windows_path
from tests.windows.running import WindowsNetwork, echoes

pytestmark = pytest.mark.slow


@pytest.fixture
def profile(network: WindowsNetwork) -> Iterator[Path]:
    """The profile of a user whose name has a space, and letters of two code pages."""
    name = f"Ann Größe Ж {secrets.token_hex(4)}"
    folder = network.windows.folder / "prefix" / "drive_c" / "users" / name
    network.environment |= {"USER": name, "KDISPATCH_CONFIG_DIR": "", "KDISPATCH_STATE_DIR": ""}
    try:
        yield folder
    finally:
        network.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def test_the_users_folder(network: WindowsNetwork, own_relay: Relay, profile: Path) -> None:
    """Settings, tokens, records and logs are in the user's ``AppData\\Local\\kdispatch``, and agents work there."""
    network.environment |= {"KDISPATCH_TOKEN": "", "KDISPATCH_RELAY": ""}
    for command in (("sign-up", "bob", "--relay", own_relay.url), ("service", "create", "web")):
        assert (await network.run(*command)).status == 0
    own = profile / "AppData" / "Local" / "kdispatch"
    async with service(echo) as running:
        started = network.start("host", "agent", "host", "web", "--port", str(running.port), "--detach", "--json")
        host = json.loads(await started.output())
        assert host["log"] == f"C:\\users\\{profile.name}\\AppData\\Local\\kdispatch\\agents\\{host['id']}.log"
        _, port = await network.connect("bob/web")
        await echoes(port)
        assert host["id"] in (await network.run("status")).out
        assert sorted(path.name for path in own.iterdir()) == [
            "agents", "config.toml", "credentials.json", "lock", "slots",
        ]  # fmt: skip
        assert (own / "agents" / f"{host['id']}.log").is_file()
        assert (await network.run("agent", "stop", "bob/web")).status == 0
    assert (await network.run("logout", "bob", "--yes")).status == 0


async def test_without_variables(network: WindowsNetwork, profile: Path) -> None:
    """The folder is found without the variables LOCALAPPDATA, APPDATA and USERPROFILE, too."""
    token, network.environment["KDISPATCH_TOKEN"] = network.environment["KDISPATCH_TOKEN"], ""
    [_, python] = network.windows.command()
    unset = "".join(f"set {name}=&& " for name in ("LOCALAPPDATA", "APPDATA", "USERPROFILE"))
    line = f"{unset}{windows_path(Path(python))} -m kdispatch login"
    done = await network.start_wine("cmd", "cmd.exe", "/c", line).done(f"{token}\n")
    assert done.status == 0, done
    assert (profile / "AppData" / "Local" / "kdispatch" / "credentials.json").is_file()
