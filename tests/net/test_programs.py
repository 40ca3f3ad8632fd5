"""Programs that people use, through a tunnel, as they are installed here."""

from __future__ import annotations

import hashlib
import os
import pwd
import random
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web

from tests.net.harness import KIB, MIB, Network, Process, needs
from tests.net.tcp import service, silent

pytestmark = pytest.mark.slow

_SSHD: Final = "/usr/sbin/sshd"
_SSHD_DIRECTORY: Final = Path("/run/sshd")  # where sshd puts its unprivileged half; distributions make it at boot
_CURL: Final = ("curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--disable")
_SIZE: Final = 20 * 1000 * 1000


def _random_file(folder: Path, size: int) -> Path:
    file = folder / f"given-{size}"
    file.write_bytes(random.Random(size).randbytes(size))
    return file


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- curl ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def _web_server(content: Path) -> AsyncIterator[int]:
    """Gives ``content`` to who asks for it, and tells who puts something the SHA-256 of it; yields the port."""

    async def get(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(content)

    async def put(request: web.Request) -> web.StreamResponse:
        hashed = hashlib.sha256()
        async for chunk in request.content.iter_chunked(64 * KIB):
            hashed.update(chunk)
        return web.Response(text=hashed.hexdigest())

    app = web.Application()
    app.add_routes([web.get("/file", get), web.put("/file", put)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@needs("curl")
async def test_curl(network: Network, tmp_path: Path) -> None:
    """curl downloads and uploads whole files, and makes several requests on one connection."""
    content, got = _random_file(tmp_path, _SIZE), tmp_path / "got"
    name = await network.service()
    async with _web_server(content) as server:
        await network.host(name, server)
        _, port = await network.connect(name)
        url = f"http://127.0.0.1:{port}/file"

        download = network.program("curl", *_CURL, "--output", str(got), url)
        assert await download.ended() == 0
        assert _digest(got) == _digest(content)

        upload = network.program("curl", *_CURL, "--upload-file", str(content), url)
        assert await upload.ended() == 0
        assert upload.out.decode() == _digest(content)

        three = ["--output", os.devnull, url] * 3
        kept = network.program("curl", *_CURL, "--range", "0-999", "--write-out", "%{num_connects} ", *three)
        assert await kept.ended() == 0
        assert kept.out.split() == [b"1", b"0", b"0"]


# --- nc -----------------------------------------------------------------------------------------------


@needs("nc")
async def test_netcat(network: Network, tmp_path: Path) -> None:
    """Two nc send each other a file and half-close behind it: both files arrive whole, and both programs end well."""
    helps = network.program("nc-help", "nc", "-h")
    await helps.ended()
    if "OpenBSD netcat" not in helps.text:
        pytest.skip("this nc is not OpenBSD's, so it has no -N")
    up, down = _random_file(tmp_path, 3 * MIB + 1), _random_file(tmp_path, 2 * MIB + 1)
    name = await network.service()
    serving = network.program("nc-service", "nc", "-v", "-N", "-l", "127.0.0.1", "0", given=down)
    listens = int((await serving.says(r"Listening on \S+ (\d+)"))[1])
    await network.host(name, listens)
    _, port = await network.connect(name)
    asking = network.program("nc-client", "nc", "-N", "127.0.0.1", str(port), given=up)
    assert [await asking.ended(), await serving.ended()] == [0, 0]
    assert hashlib.sha256(serving.out).hexdigest() == _digest(up)
    assert hashlib.sha256(asking.out).hexdigest() == _digest(down)


# --- ssh ----------------------------------------------------------------------------------------------


class _Ssh:
    """A real sshd for the user who runs the tests, and the client's side of it; everything is in one folder."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._network = network
        self._folder = folder
        self._user = pwd.getpwuid(os.getuid()).pw_name
        self._host_key, self._user_key = self._key("host_key"), self._key("user_key")

    def _key(self, name: str) -> Path:
        file = self._folder / name
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(file)]
        subprocess.run(make, check=True, timeout=30)
        return file

    def _public(self, key: Path) -> str:
        return key.with_suffix(".pub").read_text()

    async def serve(self) -> int:
        """Start sshd; returns its port. It takes no port 0, so a free one is looked for first."""
        async with service(silent) as free:
            port = free.port
        authorized = self._folder / "authorized_keys"
        authorized.write_text(self._public(self._user_key))
        config = self._folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {self._host_key}\nAuthorizedKeysFile {authorized}\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        )
        server = self._network.program("sshd", _SSHD, "-D", "-e", "-f", str(config))
        await server.says(r"Server listening on")
        return port

    def knows(self, port: int, key: Path) -> None:
        """The client expects this key at its end of the tunnel."""
        (self._folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {self._public(key)}")

    def run(self, port: int, command: str, given: Path = Path(os.devnull)) -> Process:
        """Start ssh with a command for the other side."""
        options = [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={self._folder / 'known_hosts'}",
            f"GlobalKnownHostsFile={os.devnull}",
        ]
        arguments = ["-F", os.devnull, "-i", str(self._user_key), "-p", str(port), "-l", self._user]
        arguments += [part for option in options for part in ("-o", option)]
        return self._network.program("ssh", "ssh", *arguments, "127.0.0.1", command, given=given)


@pytest.fixture
def ssh(network: Network, tmp_path: Path) -> _Ssh:
    if not _SSHD_DIRECTORY.is_dir():
        if os.geteuid() != 0:
            pytest.skip(f"sshd needs the directory {_SSHD_DIRECTORY}, which only root can make")
        _SSHD_DIRECTORY.mkdir(mode=0o755)
    return _Ssh(network, tmp_path)


@needs("ssh", "ssh-keygen", _SSHD)
async def test_ssh(network: Network, ssh: _Ssh, tmp_path: Path) -> None:
    """ssh runs commands with their output and status, pipes bytes both ways, and still knows a wrong host key."""
    name = await network.service()
    await network.host(name, await ssh.serve())
    _, port = await network.connect(name)
    ssh.knows(port, ssh._host_key)

    talking = ssh.run(port, "echo to one; echo to the other >&2; exit 42")
    assert await talking.ended() == 42
    assert (talking.out, talking.err) == (b"to one\n", "to the other\n")

    given = _random_file(tmp_path, 5 * 1000 * 1000)
    piping = ssh.run(port, "cat", given)
    assert await piping.ended() == 0
    assert hashlib.sha256(piping.out).hexdigest() == _digest(given)

    ssh.knows(port, ssh._user_key)
    refused = ssh.run(port, "true")
    assert await refused.ended() == 255
    assert re.search("host key verification failed", refused.err, re.IGNORECASE)
