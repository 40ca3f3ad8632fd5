"""The servers of docs/edges.md in front of a relay: Debian's programs, with the page's files."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
from collections.abc import Mapping
from functools import cached_property
from typing import Final

from tests.edges.asking import head
from tests.edges.debian import CERTIFICATE, KEY, Debian
from tests.edges.edge import RELOADED, RESTART, UPSTREAM, Edge, children, listens
from tests.net.harness import Process, eventually
from tests.programs.install import find
from tests.programs.tunnel import free_port

__all__ = ["MORE", "Apache", "Lighttpd", "Nghttpx", "Squid", "Stunnel", "TrafficServer", "Varnish"]

#: The relevant rest of Debian's apache2.conf.
_APACHE: Final = """
ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/pid
ErrorLog {folder}/error.log
LogLevel {level}
Timeout 300
{modules}
Listen 127.0.0.1:{port}
User www-data
Group www-data
Include {folder}/mpm_event.conf
Include {folder}/kdispatch.conf
"""
_MODULES: Final = (
    *("mpm_event", "alias", "authz_core", "headers", "proxy", "proxy_http", "reqtimeout", "socache_shmcb", "ssl"),
)


class Apache(Debian):
    """Apache: a parent, and processes with threads."""

    name = "apache"
    program = "apache2"
    module = "/usr/lib/apache2/modules/mod_ssl.so"
    paths = ("apache2/sites-available/kdispatch.conf", "apache2/mods-available/mpm_event.conf")

    def adapted(self) -> Mapping[str, str]:
        return {
            "*:443": f"127.0.0.1:{self.port}",
            UPSTREAM: f"127.0.0.1:{self.upstream}",
            CERTIFICATE: str(self.certificates),
            KEY: str(self.certificates),
            "/var/log/apache2/kdispatch.log": f"{self.folder}/access.log",
        }

    def files(self) -> dict[str, str]:
        loaded = "\n".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in _MODULES)
        level = "debug" if self._talkative else "warn"
        main = _APACHE.format(folder=self.folder, level=level, modules=loaded, port=self.port)
        return {**super().files(), "apache2.conf": main}

    def command(self, *, check: bool = False) -> list[str]:
        return [find(self.program), "-f", str(self.folder / "apache2.conf"), "-t" if check else "-DFOREGROUND"]

    async def reload(self) -> None:
        self.write()
        await self.says_again("resuming normal operations", signal.SIGUSR1)

    async def crash(self) -> None:
        await self.crash_workers()


class Lighttpd(Debian):
    """Lighttpd: one process, which leaves old connections to a child process on a reload."""

    name = "lighttpd"
    program = "lighttpd"
    paths = ("lighttpd/lighttpd.conf",)
    module = "/usr/lib/lighttpd/mod_openssl.so"
    user = "www-data"
    stays = ('"server.graceful-shutdown-timeout" => 2400', '"server.graceful-shutdown-timeout" => {:g}')

    def adapted(self) -> Mapping[str, str]:
        return {
            "= 443": f'= {self.port}\nserver.bind = "127.0.0.1"',
            '"port" => 8443': f'"port" => {self.upstream}',
            CERTIFICATE: str(self.certificates),
            KEY: str(self.certificates),
            "/var/log/lighttpd": str(self.folder),
            "/var/www/html": str(self.folder),
            "= 65536": "= 1024",
            "= 32768": "= 512",
        }

    def command(self, *, check: bool = False) -> list[str]:
        return [find(self.program), "-tt" if check else "-D", "-f", str(self.file)]

    async def reload(self) -> None:
        self.write()
        await self.says_again("server started", signal.SIGUSR1)
        await self.ready()


class Nghttpx(Debian):
    """Nghttpx: a main process and its worker process."""

    name = "nghttpx"
    program = "nghttpx"
    paths = ("nghttpx/nghttpx.conf",)

    def adapted(self) -> Mapping[str, str]:
        return {
            "frontend=*,443": f"frontend=127.0.0.1,{self.port}",
            "127.0.0.1,8443": f"127.0.0.1,{self.upstream}",
            CERTIFICATE: str(self.certificates),
            KEY: str(self.certificates),
            "/var/log/nghttpx/kdispatch.log": f"{self.folder}/access.log",
            "errorlog-syslog=yes": f"errorlog-file={self.folder}/error.log\npid-file={self.folder}/pid",
            "=65536": "=1024",
        }

    def command(self, *, check: bool = False) -> list[str]:
        assert not check, "it has no option for that"
        return [find(self.program), f"--conf={self.file}"]

    async def reload(self) -> None:
        self.write()
        before = children(self.process.pid)
        self.process.send_signal(signal.SIGHUP)
        await eventually(lambda: bool(children(self.process.pid) - before), expected=True, wait=RELOADED)

    async def crash(self) -> None:
        for pid in children(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        await self.process.ended()
        await asyncio.sleep(RESTART)
        await self.start()


class Squid(Debian):
    """Squid as an accelerator."""

    name = "squid"
    program = "squid"
    paths = ("squid/squid.conf",)
    user = "proxy"

    def adapted(self) -> Mapping[str, str]:
        return {
            "https_port 443 ": f"https_port 127.0.0.1:{self.port} ",
            "parent 8443 ": f"parent {self.upstream} ",
            CERTIFICATE: str(self.certificates),
            KEY: str(self.certificates),
            "/run/squid.pid": f"{self.folder}/pid",
            "/var/log/squid": str(self.folder),
            "/var/spool/squid": str(self.folder),
            " 65536": " 1024",
            "shutdown_lifetime 5 seconds": "shutdown_lifetime 0 seconds",
        }

    def command(self, *, check: bool = False) -> list[str]:
        name = f"k{self.port}"
        return [find(self.program), *(["-k", "parse"] if check else ["-N"]), "-n", name, "-f", str(self.file)]

    async def reload(self) -> None:
        self.write()
        await self.says_again("Accepting reverse-proxy HTTPS Socket", signal.SIGHUP)
        await self.ready()


_RUNROOT: Final = """
prefix: {folder}
exec_prefix: {folder}
bindir: /usr/bin
sbindir: /usr/sbin
sysconfdir: {folder}
datadir: {folder}
includedir: {folder}
libdir: /usr/lib
libexecdir: /usr/lib/trafficserver/modules
localstatedir: {folder}
runtimedir: {folder}
logdir: {folder}
mandir: {folder}
infodir: {folder}
cachedir: {folder}
"""


class TrafficServer(Debian):
    """Traffic Server: traffic_manager and its traffic_server, in their own folder (a run root)."""

    name = "trafficserver"
    program = "traffic_manager"
    module = "/usr/lib/trafficserver/modules/header_rewrite.so"
    paths = (
        *(f"trafficserver/{name}.config" for name in ("records", "remap", "ssl_multicert", "plugin", "kdispatch")),
        *(f"trafficserver/{name}.yaml" for name in ("ip_allow", "logging")),
    )

    def adapted(self) -> Mapping[str, str]:
        return {
            "443:ssl 443:ipv6:ssl": f"{self.port}:ssl:ip-in=127.0.0.1",
            UPSTREAM: f"127.0.0.1:{self.upstream}",
            "//relay.example.org/": "//localhost/",
            " 30000": " 500",
            "/etc/ssl/private": str(self.folder),
            "relay.pem": self.certificates.name,
            "relay.key": self.certificates.name,
            "STRING trafficserver": "STRING #-1",
        }

    def files(self) -> dict[str, str]:
        runroot = _RUNROOT.format(folder=self.folder)
        files = super().files()
        by_address = files["remap.config"].replace("//localhost/", f"//127.0.0.1:{self.port}/")
        remap = files["remap.config"] + by_address
        return {**files, "remap.config": remap, "runroot.yaml": runroot, "storage.config": ""}

    def command(self, *, check: bool = False) -> list[str]:
        program = [find("traffic_server"), "-C", "verify_config"] if check else [find(self.program)]
        return [*program, f"--run-root={self.folder}/runroot.yaml"]

    async def reload(self) -> None:
        self.write()
        command = [find("traffic_ctl"), f"--run-root={self.folder}/runroot.yaml", "config", "reload"]
        done = "remap.config finished loading"
        before = self.said(done)
        reloading = Process("reload", command, self.folder)
        assert await reloading.ended(RELOADED) == 0, reloading.text
        await eventually(lambda: self.said(done) > before, expected=True, wait=RELOADED)

    async def crash(self) -> None:
        await self.crash_workers()


class Stunnel(Debian):
    """Stunnel directly in front of the relay: it passes bytes through."""

    name = "stunnel"
    program = "stunnel"
    paths = ("stunnel/relay.conf",)

    def adapted(self) -> Mapping[str, str]:
        return {
            "accept = :::443": f"accept = 127.0.0.1:{self.port}",
            UPSTREAM: f"127.0.0.1:{self.upstream}",
            CERTIFICATE: str(self.certificates),
            KEY: str(self.certificates),
            "setuid = stunnel4\nsetgid = stunnel4\n": "pid =\n",
        }

    def command(self, *, check: bool = False) -> list[str]:
        assert not check, "it has no option for that"
        return [find(self.program), str(self.file)]

    async def reload(self) -> None:
        self.write()
        await self.says_again("Configuration successful", signal.SIGHUP)


class Varnish(Debian):
    """Varnish with its two processes, behind stunnel for TLS."""

    name = "varnish"
    program = "varnishd"
    paths = (
        "varnish/kdispatch.vcl",
        *("systemd/system/varnish.service.d/kdispatch.conf", "systemd/system/varnishncsa.service.d/log.conf"),
        "stunnel/varnish.conf",
    )

    @classmethod
    def lacks(cls) -> str:
        return super().lacks() or Stunnel.lacks()

    def adapted(self) -> Mapping[str, str]:
        return {
            "accept = :::443": f"accept = 127.0.0.1:{self.port}",
            "setuid = stunnel4\nsetgid = stunnel4\n": "pid =\n",
            CERTIFICATE: str(self.certificates),
            KEY: str(self.certificates),
            "127.0.0.1:6081": f"127.0.0.1:{self._inner}",
            '"8443"': f'"{self.upstream}"',
            "/usr/sbin/varnishd -j unix,user=vcache": f"{find(self.program)} -j none -n {self.folder}/work",
            "/etc/varnish/kdispatch.vcl": str(self.file),
            "/usr/bin/varnishncsa -a": f"{find('varnishncsa')} -a -n {self.folder}/work",
            "/var/log/varnish": str(self.folder),
        }

    @cached_property
    def _inner(self) -> int:
        return free_port()

    def command(self, *, check: bool = False) -> list[str]:
        command = self._unit("kdispatch.conf")
        return [*(word for word in command if word != "-F"), "-C"] if check else command

    def _unit(self, name: str) -> list[str]:
        """The command that a systemd unit starts."""
        started = (self.folder / name).read_text().rpartition("ExecStart=")[2].replace("%%", "%")
        return shlex.split(started.partition("\n")[0])

    async def start(self) -> None:
        await super().start()
        if len(self._started) == 1:
            beside = {"stunnel": [find("stunnel"), str(self.folder / "varnish.conf")]}
            if self._talkative:
                beside["varnishncsa"] = self._unit("log.conf")
            self._started[:0] = [Process(name, command, self.folder) for name, command in beside.items()]
        await super().ready()
        if self._talkative:
            await self._is_logging()

    async def _is_logging(self) -> None:
        """Return when varnishncsa writes: it starts with what is requested after it has found the shared memory."""
        async with asyncio.timeout(RELOADED):
            while not any("/metrics" in text for text in self.logs.values()):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._inner)
                writer.write(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + head("GET", "/metrics"))
                await reader.read()
                writer.close()
                await writer.wait_closed()
                await asyncio.sleep(0.1)

    async def ready(self) -> None:
        await eventually(lambda: listens(self._inner), expected=True, wait=RELOADED)

    async def reload(self) -> None:
        self.write()
        name = f"kdispatch{secrets.token_hex(4)}"
        for words in (("vcl.load", name, str(self.file)), ("vcl.use", name)):
            asking = Process("reload", [find("varnishadm"), "-n", f"{self.folder}/work", *words], self.folder)
            assert await asking.ended(RELOADED) == 0, asking.text

    async def crash(self) -> None:
        await self.crash_workers()


MORE: Final[tuple[type[Edge], ...]] = (Apache, Lighttpd, Nghttpx, Squid, TrafficServer, Varnish, Stunnel)
