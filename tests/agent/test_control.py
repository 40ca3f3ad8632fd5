"""The control socket: which requests it answers, and what does not harm it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdispatch.machine import control, control_server
from kdispatch.machine.control import ask, bind
from kdispatch.machine.control_server import ControlServer
from kdispatch.machine.operating_system import Windows
from tests.guards.promises import promised
from tests.guards.systems import POSIX

TOKEN = "t" * 43


@dataclass
class Agent:
    """A record's data about an agent's socket."""

    control: str
    id: str = "a"
    control_token: str = TOKEN
    asked: int = 0

    async def say(self, **request: Any) -> dict[str, Any] | None:
        self.asked += 1
        return (await asyncio.to_thread(ask, [self], 2.0, **request)).get(self.id)

    async def write(self, *pieces: bytes) -> bytes:
        """Write anything else; returns all that is answered."""
        reader, writer = await (
            asyncio.open_unix_connection(self.control)
            if self.control.startswith("/")
            else asyncio.open_connection(*self.control.split(":"))
        )
        answer = b""
        try:
            for piece in pieces:
                writer.write(piece)
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            writer.transport.abort()
        return answer


@pytest.fixture(params=[pytest.param("unix", marks=POSIX), "loopback"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either kind of socket; the second as on Windows."""
    if request.param == "loopback":
        monkeypatch.setattr(control, "HERE", Windows())
    return str(request.param)


async def echo(request: Mapping[str, Any]) -> dict[str, Any]:
    return {"heard": request.get("what")}


async def much(_: Mapping[str, Any]) -> dict[str, Any]:
    return {"much": "x" * (3 * 1024 * 1024)}


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Agent]:
    sock, address = bind(path)
    async with ControlServer(sock, TOKEN, {"echo": echo, "much": much}):
        yield Agent(address)


@pytest.fixture
def path() -> Iterator[Path]:
    """A path for a socket: pytest's own folders have names that are too long for one, and are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "a.sock"


@pytest.fixture
async def agent(kind: str, path: Path) -> AsyncIterator[Agent]:
    async with serving(path) as found:
        assert found.control.startswith("/" if kind == "unix" else "127.0.0.1:")
        yield found


async def test_an_answer(agent: Agent) -> None:
    """A request with the token is answered, and a large answer comes completely."""
    assert await agent.say(command="echo", what=[1, "two"]) == {"schema": 1, "heard": [1, "two"]}
    answer = await agent.say(command="much")
    assert answer is not None and len(answer["much"]) == 3 * 1024 * 1024


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"\xff\xfe\x00\n",
        b"[" * 4000 + b"\n",
        b"1" * 4000 + b"\n",
        b"x" * 100_000,
        b'{"token": 7}\n',
        json.dumps({"token": TOKEN[1:], "command": "echo"}).encode() + b"\n",
        json.dumps({"token": TOKEN}).encode() + b"\n",
        json.dumps({"token": TOKEN, "command": ["echo"]}).encode() + b"\n",
        json.dumps({"token": TOKEN, "command": "echo", "until": "later"}).encode() + b"\n",
        json.dumps({"token": "\ud800", "command": "echo"}).encode() + b"\n",
    ],
)
async def test_garbage(agent: Agent, line: bytes) -> None:
    """An invalid request, or one with another token, gets at most an error, and the next request its answer."""
    answer = await agent.write(line)
    assert not answer or json.loads(answer)["error"]["code"] in {"bad_request", "not_permitted"}
    assert await agent.say(command="echo", what=1) == {"schema": 1, "heard": 1}


async def test_too_late(agent: Agent) -> None:
    """A request that its sender has given up is not carried out."""
    late = {"token": TOKEN, "command": "echo", "until": time.monotonic() - 0.001}
    assert await agent.write(json.dumps(late).encode() + b"\n") == b""


@pytest.mark.timed
async def test_the_slow_and_the_many(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends half a request is dropped, so that the maximum number of them blocks others only briefly."""
    monkeypatch.setattr(control_server, "_SECONDS", 0.2)
    begun = time.monotonic()
    many = [asyncio.create_task(agent.write(b'{"token"')) for _ in range(control_server._MOST + 4)]
    assert await asyncio.gather(*many) == [b""] * len(many)
    assert time.monotonic() - begun < promised(2)
    assert await agent.say(command="echo", what=2) == {"schema": 1, "heard": 2}


@pytest.mark.timed
async def test_the_silent_do_not_block(agent: Agent) -> None:
    """Agents that answer are seen in time, although others accept the request and stay silent."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = Agent(f"127.0.0.1:{mute.getsockname()[1]}", id="silent")
        gone, never = Agent("/nowhere/a.sock", id="gone"), Agent("127.0.0.1:1", id="never")
        begun = time.monotonic()
        said = await asyncio.to_thread(ask, [silent, gone, agent, never], 0.3, command="much")
        assert list(said) == ["a"] and time.monotonic() - begun < promised(1.5)


@POSIX
def test_a_full_backlog(path: Path) -> None:
    """A stopped agent with a full backlog counts as one that does not answer."""
    with socket.socket(socket.AF_UNIX) as stopped, socket.socket(socket.AF_UNIX) as first:
        stopped.bind(str(path))
        stopped.listen(0)
        first.connect(str(path))
        assert ask([Agent(str(path))], 0.2, command="echo") == {}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root can be another user")
async def test_other_users(path: Path) -> None:
    """Another user of the machine cannot even connect to the unix socket."""
    script = (
        f"import os, socket\nos.setuid(65534)\ntry: socket.socket(socket.AF_UNIX).connect({str(path)!r})\n"
        "except PermissionError: print('refused')"
    )
    async with serving(path):
        command = [sys.executable, "-c", script]
        ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        assert ended.stdout == "refused\n"


def test_a_unix_socket_is_no_answer_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record with the path of a unix socket, where Python has none, counts as an agent that does not answer."""
    monkeypatch.setattr(control, "HERE", Windows())
    assert ask([Agent("/run/user/1000/kdispatch/a")], 1.0, command="status") == {}
