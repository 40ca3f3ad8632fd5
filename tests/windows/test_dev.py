"""``kdispatch dev`` under Wine: relay, host and client in one process, which leaves nothing behind."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.net.tcp import Tcp, echo, service
from tests.windows.environment import windows_path
from tests.windows.running import WindowsNetwork, same

pytestmark = pytest.mark.slow


async def test_dev(network: WindowsNetwork, tmp_path: Path) -> None:
    """In a console it answers, another terminal uses it by the printed line, and Ctrl-C ends it and deletes all."""
    network.environment |= {"KDISPATCH_TOKEN": "", "KDISPATCH_RELAY": ""}
    own = tmp_path / "it's"
    own.mkdir()
    # Not by a variable, because Wine itself takes TMPDIR.
    (tmp_path / "sitecustomize.py").write_text(f"import tempfile\ntempfile.tempdir = {windows_path(own)!r}\n")
    path = f"{windows_path(tmp_path)};{network.environment['PYTHONPATH']}"
    async with service(echo) as running, asyncio.timeout(100):
        process = network.console("dev", "dev", "--port", str(running.port), PYTHONPATH=path)
        port = int((await process.says(r"is reached by http://127\.0\.0\.1:(\d+)"))[1])
        async with await Tcp.connect(port) as tcp:
            await same(tcp)
        line = (await process.says(r"\$env:.*KDISPATCH_RELAY = 'http://127.0.0.1:\d+'"))[0]
        there = {name: value.replace("''", "'") for name, value in re.findall(r"\$env:(\w+) = '((?:[^']|'')*)'", line)}
        assert there["KDISPATCH_CONFIG_DIR"].startswith(windows_path(own))
        assert (await network.run("whoami", "--quiet", **there)).out == "dev\n"
        process.press(b"\x03")
        assert await process.ended() == 0
    assert _left(own) == []


def _left(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]
