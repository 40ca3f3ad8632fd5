"""Agents in the background, as scripts use them: they start, work and stop, and leave nothing behind."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient
from tests.guards.promises import promised
from tests.net.harness import Network, Relay, eventually, sizes
from tests.net.tcp import Service, Tcp, echo, service

pytestmark = pytest.mark.slow

_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
_PR_SET_CHILD_SUBREAPER: Final = 36
_FAILS_WITHIN: Final = promised(12.0)


@pytest.fixture(autouse=True)
def adopting() -> Iterator[None]:
    """Make this process the parent of orphaned processes, so that it sees when they end."""
    libc = ctypes.CDLL(None)
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux lets a test adopt processes")
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


@pytest.fixture
async def offered(network: Network) -> AsyncIterator[tuple[str, Service]]:
    """An echo service, offered by a host in the foreground."""
    async with service(echo) as local:
        name = await network.service()
        await network.host(name, local.port)
        yield name, local


class Shell:
    """Runs commands as a script does: it waits for the end of each, and of all that have its standard output."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.agents = network.folder / "state" / "agents"

    async def __call__(self, *arguments: str, token: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return await self.run(_KDISPATCH, "agent", *arguments, token=token, **environment)

    async def run(self, *command: str, token: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        # In a thread: the services of these tests are in this process.
        return await asyncio.to_thread(
            subprocess.run, command, env={**os.environ, **self.network.environment, **environment},
            input=token, capture_output=True, text=True, timeout=30, check=False, start_new_session=True,
        )  # fmt: skip

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self.agents.glob("*.json")]


@pytest.fixture
def shell(network: Network) -> Iterator[Shell]:
    shell = Shell(network)
    yield shell
    for record in shell.records():
        if record["log"]:
            os.kill(record["pid"], signal.SIGKILL)
            os.waitpid(record["pid"], 0)


async def _ended(pid: int) -> int:
    """Reap an adopted process; returns its status."""
    found: list[int] = []

    def reap() -> bool:
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if reaped:
            found.append(os.waitstatus_to_exitcode(status))
        return bool(found)

    await eventually(reap, expected=True)
    return found[0]


def _log(record: dict[str, Any]) -> tuple[int, str]:
    """Mode and content of an agent's log."""
    path = Path(record["log"])
    return path.stat().st_mode & 0o777, path.read_text()


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def _echoes(port: int) -> bool:
    async with await Tcp.connect(port) as tcp:
        await tcp.send(b"hello")
        return await tcp.receive_exactly(5) == b"hello"


@pytest.mark.parametrize("times", sizes(3, 20))
async def test_connect_and_stop(shell: Shell, offered: tuple[str, Service], times: int) -> None:
    """A script gets the bare port, uses it at once, and stops the agent: only its log is left."""
    name, _ = offered
    for _ in range(times):
        begun = await shell("connect", name, "--detach", "--quiet", "--verbose")
        assert (begun.returncode, begun.stderr) == (0, "")
        assert await _echoes(int(begun.stdout))
        (record,) = [record for record in shell.records() if record["kind"] == "connect"]
        stopped = await shell("stop", record["id"], "--quiet")
        assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, f"{record['id']}\n", "")
        assert await _ended(record["pid"]) == 0
        assert not (shell.agents / f"{record['id']}.json").exists()
        mode, logged = _log(record)
        assert mode == 0o600 and "A connection ended. [closed]" in logged
        with pytest.raises(ConnectionRefusedError):
            await Tcp.connect(int(begun.stdout))


async def test_host(shell: Shell, network: Network) -> None:
    """A host in the background is listed when the command returns; its token came by standard input only."""
    token = network.environment["KDISPATCH_TOKEN"]
    name = await network.service()
    async with service(echo) as local:
        begun = await shell(
            "host", name, "--port", str(local.port), "--detach", "--json", "--token", "-", token=f"{token}\n"
        )
        assert (begun.returncode, begun.stderr) == (0, "")
        result = json.loads(begun.stdout)
        assert (result["schema"], result["kind"], result["service"], result["port"]) == (1, "host", name, local.port)
        assert result["withdraw_token"].startswith("hst_")
        assert await network.live_hosts(name) == 1
        of_process = Path(f"/proc/{result['pid']}")
        for file in ("cmdline", "environ"):
            assert token.encode() not in (of_process / file).read_bytes()
        assert os.getsid(result["pid"]) == result["pid"]
        _, port = await network.connect(name)
        assert await _echoes(port)
        stopped = await shell("stop", result["host"][:6], "--json")
        assert stopped.returncode == 0
        (told,) = json.loads(stopped.stdout)["stopped"]
        assert (told["id"], told["host"]) == (result["id"], result["host"])
        assert "withdraw_token" not in stopped.stdout
        assert await _ended(result["pid"]) == 0
        await network.has_live_hosts(name, 0)
        _, logged = _log(result)
        assert token not in logged and result["withdraw_token"] not in logged


@pytest.mark.timed
async def test_stop_drains(shell: Shell, offered: tuple[str, Service]) -> None:
    """A running connection ends first; until it does, ``stop`` reports busy, and --now ends it at once."""
    name, _ = offered
    port = int((await shell("connect", name, "--detach", "--quiet", "--drain-time", "0.5")).stdout)
    (record,) = [record for record in shell.records() if record["kind"] == "connect"]
    async with await Tcp.connect(port) as tcp:
        await tcp.send(b"x")
        await tcp.receive_exactly(1)
        begun = time.monotonic()
        assert (await shell("stop", record["id"])).returncode == 0
        assert 0.5 <= time.monotonic() - begun < promised(4)
    assert await _ended(record["pid"]) == 0

    port = int((await shell("connect", name, "--detach", "--quiet")).stdout)
    (record,) = [record for record in shell.records() if record["kind"] == "connect"]
    async with await Tcp.connect(port) as tcp:
        await tcp.send(b"x")
        await tcp.receive_exactly(1)
        begun = time.monotonic()
        assert (await shell("stop", record["id"], "--now")).returncode == 0
        assert time.monotonic() - begun < promised(3)
    assert await _ended(record["pid"]) == 128 + signal.SIGTERM
    assert not (shell.agents / f"{record['id']}.json").exists()


async def test_stop_does_not_answer(shell: Shell, offered: tuple[str, Service]) -> None:
    """An agent that does not end in time is reported with ``busy`` and with a way to end it."""
    name, _ = offered
    await shell("connect", name, "--detach", "--quiet", "--drain-time", "0")
    (record,) = [record for record in shell.records() if record["kind"] == "connect"]
    os.kill(record["pid"], signal.SIGSTOP)
    ended = await shell("stop", record["id"][:4])
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "[busy]" in ended.stderr and f"agent stop --now {record['id']}" in ended.stderr
    assert (await shell("stop", "--now", record["id"])).returncode == 0
    assert await _ended(record["pid"]) == -signal.SIGKILL


async def test_stop_by_service(shell: Shell, network: Network, offered: tuple[str, Service]) -> None:
    """All agents of a service end by its name, also those in the foreground; then there are none to stop."""
    name, _ = offered
    foreground, _ = await network.connect(name)
    await shell("connect", name, "--detach")
    pids = {record["pid"] for record in shell.records()}
    assert len(pids) == 3 and foreground.pid in pids
    background = next(record["pid"] for record in shell.records() if record["log"])
    stopped = await shell("stop", name.partition("/")[2])
    assert (stopped.returncode, len(stopped.stdout.splitlines())) == (0, 3)
    assert await foreground.ended(5) == 0
    assert await _ended(background) == 0
    none = await shell("stop", name)
    assert none.returncode == 3 and "[unknown_agent]" in none.stderr


async def test_dead_agent_is_forgotten(shell: Shell, offered: tuple[str, Service]) -> None:
    """The record of a killed agent is removed when it is found, and no other process with its pid is affected."""
    name, _ = offered
    await shell("connect", name, "--detach")
    (record,) = [record for record in shell.records() if record["kind"] == "connect"]
    os.kill(record["pid"], signal.SIGKILL)
    await _ended(record["pid"])
    path = shell.agents / f"{record['id']}.json"
    path.write_text(json.dumps(record | {"pid": os.getpid()}))
    assert (await shell("stop", record["id"])).returncode == 3
    assert not path.exists()


async def test_survives_the_terminal(shell: Shell, offered: tuple[str, Service]) -> None:
    """An agent goes on when the session of the command that started it gets SIGHUP."""
    name, _ = offered
    script = f"p=$({_KDISPATCH} agent connect {name} --detach --quiet); echo $p; kill -HUP 0; sleep 5"
    ended = await shell.run("sh", "-c", script)
    assert ended.returncode == -signal.SIGHUP
    assert await _echoes(int(ended.stdout))


async def test_interrupted(shell: Shell, network: Network) -> None:
    """Ctrl-C while the command waits ends what it started, with 130, and leaves neither record nor log."""
    name = await network.service()
    waiting = network.agent("waiting", "connect", name, "--detach", "--wait", "25")

    await eventually(lambda: len(_children(waiting.pid)), 1)
    (child,) = _children(waiting.pid)
    # The new process has begun when it has read its input.
    await eventually(lambda: any(path.stat().st_size for path in shell.agents.glob("*.log")), expected=True)
    waiting.send_signal(signal.SIGINT)
    assert await waiting.ended() == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)
    assert not [path for path in shell.agents.iterdir() if path.name != "lock"]


async def test_command_that_is_killed(shell: Shell, network: Network) -> None:
    """An agent whose command was killed before it could report ends by itself, because no user would know of it."""
    name = await network.service()
    waiting = network.agent("waiting", "connect", name, "--detach", "--wait", "25")
    await eventually(lambda: any(path.stat().st_size for path in shell.agents.glob("*.log")), expected=True)
    (child,) = _children(waiting.pid)
    waiting.stop(signal.SIGKILL)
    async with service(echo) as local:
        await network.host(name, local.port)
        assert await _ended(int(child)) == 3
    assert [record["kind"] for record in shell.records()] == ["host"]


@pytest.mark.timed
@pytest.mark.parametrize("failure", ["no_live_host", "port_in_use", "token_refused", "relay_unreachable"])
async def test_failures(shell: Shell, own_relay: Relay, network: Network, failure: str) -> None:
    """A failure has the same text, code and exit status as in the foreground, in time, and leaves nothing."""
    name = await network.service()
    arguments, environment = ["connect", name], {}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        if failure == "port_in_use":
            arguments += ["--port", port]
        elif failure == "token_refused":
            async with RestClient(Dialer(RelayUrl.parse(network.url))) as rest:
                other = await rest.sign_up("bob")
            wrong = other.token[:-1] + ("0" if other.token[-1] != "0" else "1")
            arguments, environment = ["host", name, "--port", port], {"KDISPATCH_TOKEN": wrong}
        elif failure == "relay_unreachable":
            own_relay.stop()
        foreground = await shell(*arguments, "--wait", "0.5", **environment)
        begun = time.monotonic()
        background = await shell(*arguments, "--wait", "8", "--detach", **environment)
        assert time.monotonic() - begun < _FAILS_WITHIN
        as_json = await shell(*arguments, "--wait", "0.5", "--detach", "--json", **environment)
    assert f"[{failure}]" in background.stderr
    last = foreground.stderr.splitlines()[-3:]
    assert (background.returncode, background.stdout) == (foreground.returncode, "")
    assert background.stderr.splitlines() == last
    assert json.loads(as_json.stderr)["error"]["code"] == failure
    assert as_json.returncode == foreground.returncode
    assert not [path for path in shell.agents.glob("*") if path.name != "lock"]


async def test_state_directory(shell: Shell, offered: tuple[str, Service], tmp_path: Path) -> None:
    """If no record can be written, the background fails with the reason, and the foreground warns and goes on."""
    name, _ = offered
    (tmp_path / "file").write_text("")
    elsewhere = str(tmp_path / "file" / "state")
    failed = await shell("connect", name, "--detach", KDISPATCH_STATE_DIR=elsewhere)
    assert failed.returncode == 2 and "[bad_request]" in failed.stderr
    assert "KDISPATCH_STATE_DIR" in failed.stderr and elsewhere in failed.stderr
    shell.network.environment["KDISPATCH_STATE_DIR"] = elsewhere
    agent, port = await shell.network.connect(name)
    assert await _echoes(port)
    assert agent.err.count("will not find this agent") == 1
