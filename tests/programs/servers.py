"""Servers of common programs, each a process of one test on a free port."""

from __future__ import annotations

import os
import pwd
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.net.harness import Network, Process
from tests.programs.install import find
from tests.programs.tunnel import free_port

__all__ = ["GIT", "Ssh", "git_daemon", "iperf3", "postgres", "redis"]

_SSHD_DIRECTORY: Final = Path("/run/sshd")  # sshd's privilege separation needs it; distributions create it at boot
#: git without the settings of the user who runs the tests, but with an author's name.
GIT: Final = (
    *("env", f"GIT_CONFIG_GLOBAL={os.devnull}", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0"),
    *("git", "-c", "user.name=ann", "-c", "user.email=ann@example.org", "-c", "init.defaultBranch=main"),
)


def _output(*command: str) -> str:
    """Run a short command that needs no tunnel; returns its output."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


class Ssh:
    """A real sshd for the user who runs the tests, and the client's settings; all files are in one folder."""

    def __init__(self, network: Network, folder: Path) -> None:
        if not _SSHD_DIRECTORY.is_dir():
            if os.geteuid() != 0:
                pytest.skip(f"sshd needs the directory {_SSHD_DIRECTORY}, which only root can make")
            _SSHD_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        self._network = network
        self._folder = folder
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.host_key, self.user_key = self._key("host_key"), self._key("user_key")

    def _key(self, name: str) -> Path:
        file = self._folder / name
        _output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(file))
        return file

    def _public(self, key: Path) -> str:
        return key.with_suffix(".pub").read_text()

    async def serve(self) -> int:
        """Start sshd; returns its port."""
        port = free_port()
        authorized = self._folder / "authorized_keys"
        authorized.write_text(self._public(self.user_key))
        config = self._folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {self.host_key}\nAuthorizedKeysFile {authorized}\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        )
        server = self._network.program("sshd", find("sshd"), "-D", "-e", "-f", str(config))
        await server.says(r"Server listening on")
        return port

    def knows(self, port: int, key: Path) -> None:
        """Let the client expect this host key at its end of the tunnel."""
        (self._folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {self._public(key)}")

    @property
    def command(self) -> list[str]:
        """The ssh command with the test's keys only, without port and host; also for programs that start ssh."""
        options = [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={self._folder / 'known_hosts'}",
            f"GlobalKnownHostsFile={os.devnull}",
        ]
        words = ["ssh", "-F", os.devnull, "-i", str(self.user_key), "-l", self.user]
        return words + [part for option in options for part in ("-o", option)]

    @property
    def shell_command(self) -> str:
        """The ssh command as one word for a shell."""
        return shlex.join(self.command)

    def run(self, port: int, command: str, given: Path = Path(os.devnull)) -> Process:
        """Start ssh with a command for the server."""
        return self._network.program("ssh", *self.command, "-p", str(port), "127.0.0.1", command, given=given)


async def git_daemon(network: Network, base: Path) -> int:
    """Serve the repositories below ``base`` for fetch and push; returns the port."""
    port = free_port()
    # Start the program directly: with ``git daemon`` the test would end only the parent process.
    daemon = str(Path(_output("git", "--exec-path").strip()) / "git-daemon")
    options = ["--verbose", "--export-all", "--enable=receive-pack", "--listen=127.0.0.1", f"--port={port}"]
    server = network.program("git-daemon", daemon, *options, f"--base-path={base}", str(base))
    await server.says("Ready to rumble")
    return port


async def iperf3(network: Network) -> tuple[int, Process]:
    """Start a server that accepts one measurement after another; returns the port and the server."""
    port = free_port()
    server = network.program("iperf3-server", "iperf3", "-s", "-B", "127.0.0.1", "-p", str(port), "--forceflush")
    await server.says("Server listening on")
    return port, server


async def redis(network: Network, folder: Path) -> int:
    """Start a server without files on disk; returns the port."""
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    server = network.program("redis-server", find("redis-server"), *options)
    await server.says("Ready to accept connections")
    return port


@asynccontextmanager
async def postgres(network: Network) -> AsyncIterator[int]:
    """Run a server on a new cluster with a password that the network's programs have; yields the port."""
    # Outside pytest's folder: only the tests' user may enter that, and its path is too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="kdispatch-postgres-"))
    password = folder / "password"
    password.write_text(secrets.token_hex(16))
    network.environment |= {"PGUSER": "ann", "PGDATABASE": "postgres", "PGPASSWORD": password.read_text()}
    server: Process | None = None
    try:
        command = ["env", f"--chdir={folder}", *_as_user(folder)]
        new = ["-A", "scram-sha-256", "-U", "ann", f"--pwfile={password}", "-E", "UTF8", "--no-locale", "--no-sync"]
        _output(*command, find("initdb"), *new, "data")
        port = free_port()
        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}"]
        settings += ["fsync=off", "shared_buffers=16MB"]
        options = [part for setting in settings for part in ("-c", setting)]
        server = network.program("postgres", *command, find("postgres"), "-D", "data", *options)
        await server.says("ready to accept connections")
        yield port
    finally:
        # SIGQUIT, because SIGKILL would leave the shared memory behind.
        if server is not None and server.status is None:
            server.stop(signal.SIGQUIT)
        shutil.rmtree(folder)


def _as_user(folder: Path) -> list[str]:
    """The command prefix to run as a user other than root, who gets the folder; empty for other users."""
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    for path in [folder, *folder.iterdir()]:
        os.chown(path, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
