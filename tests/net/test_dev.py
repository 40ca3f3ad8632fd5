"""``kdispatch dev`` as a process: relay, host and client in one, which leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.net.harness import Process
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow

_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start kdispatch with its temporary files in ``tmp``; relay and token in the environment are invalid."""
    (tmp_path / "tmp").mkdir()
    processes: list[Process] = []
    environment = {
        "TMPDIR": str(tmp_path / "tmp"),
        "KDISPATCH_CONFIG_DIR": str(tmp_path / "untouched"),
        "KDISPATCH_RELAY": "http://127.0.0.1:9",
    }

    def start(*arguments: str, **more: str) -> Process:
        name = f"kdispatch-{len(processes)}"
        processes.append(Process(name, [_KDISPATCH, *arguments], tmp_path, environment | more))
        return processes[-1]

    yield start
    for process in processes:
        if process.status is None:
            process.stop(signal.SIGKILL)


async def _get(port: int, request: bytes = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") -> bytes:
    async with asyncio.timeout(10), await Tcp.connect(port) as tcp:
        await tcp.send(request)
        return await tcp.receive_all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_built_in_service_answers_and_nothing_stays(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """The printed URL answers, only the owner can read the files, and a signal ends it with 0 and deletes all."""
    process = start("dev")
    port = int((await process.says(r"is reached by http://127\.0\.0\.1:(\d+)\n"))[1])
    status, _, body = (await _get(port)).partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"hello from kdispatch dev\n"
    assert await _get(port, b"x" * 100_000) == b""

    files = [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]
    assert {"relay.db", "config.toml", "credentials.json"} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert process.stop(number) == 0
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "untouched").exists()
    assert not re.search("Traceback|(adm|svc|hst)_", process.text)
    with pytest.raises(ConnectionRefusedError):
        await Tcp.connect(port)


async def test_another_terminal_uses_the_relay(start: Start) -> None:
    """With the exported lines other commands find relay and tokens, and the tunnel leads to the given port."""
    async with service(echo) as local:
        process = start("dev", "--port", str(local.port), "--json")
        tunnel = json.loads((await process.says(r"\{.*\}\n"))[0])
        assert tunnel["schema"] == 1
        assert (tunnel["port"], tunnel["url"]) == (local.port, f"http://127.0.0.1:{tunnel['connect_port']}")
        async with await Tcp.connect(tunnel["connect_port"]) as tcp:
            await tcp.send(b"ping")
            assert await tcp.receive_exactly(4) == b"ping"
        there = {"KDISPATCH_CONFIG_DIR": tunnel["config"], "KDISPATCH_RELAY": tunnel["relay"]}
        hosts = start("service", "hosts", "app", "--json", **there)
        assert await hosts.ended() == 0, hosts.err
        assert len(json.loads(hosts.out)["hosts"]) == 1
        whoami = start("whoami", "--quiet", **there)
        assert (await whoami.ended(), whoami.out) == (0, b"dev\n")
        assert process.stop() == 0
        assert all(json.loads(line)["event"] for line in process.err.splitlines())


async def test_a_service_that_ends_and_starts_again(start: Start) -> None:
    """While the given port is closed the service has no live host; once it is open again, it is offered again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with service(echo, port=port):
        process = start("dev", "--port", str(port), "--json")
        tunnel = json.loads((await process.says(r"\{.*\}\n"))[0])
    await process.says("withdrawn until it is back")
    async with service(echo, port=port):
        await process.says("open again")
        async with await Tcp.connect(tunnel["connect_port"]) as tcp:
            await tcp.send(b"ping")
            assert await tcp.receive_exactly(4) == b"ping"


async def test_quiet_prints_the_port(start: Start) -> None:
    """--quiet prints only the chosen port; the relay listens on the given port."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [str(sock.getsockname()[1]) for sock in (one, other)]
    process = start("dev", "--quiet", "--connect-port", ports[0], "--relay-port", ports[1])
    await process.says(r"\n")
    assert b"hello" in await _get(int(ports[0]))
    assert b"404" in await _get(int(ports[1]))
    assert (process.stop(signal.SIGINT), process.text) == (0, f"{ports[0]}\n")


@pytest.mark.parametrize(
    ("option", "code"),
    [("--port", "local_port_closed"), ("--connect-port", "port_in_use"), ("--relay-port", "port_in_use")],
)
async def test_a_port_of_no_use_is_named(start: Start, tmp_path: Path, option: str, code: str) -> None:
    """A closed port to offer, or a port in use to listen on, ends it with an error, and nothing is left."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: closed for one, taken for the other
        process = start("dev", option, str(taken.getsockname()[1]))
        assert await process.ended() == 1
    assert f"[{code}]" in process.err
    assert process.out == b""
    assert list((tmp_path / "tmp").iterdir()) == []
