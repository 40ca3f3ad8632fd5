"""The measured chains: no proxies, the ruler of three HAProxy processes, and kdispatch's three processes."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.caddy import in_front
from bench.processes import KDISPATCH, PYTHON, Processes, Program

__all__ = [
    "Chain",
    "Leg",
    "bare",
    "environment",
    "haproxy",
    "has_ruler",
    "kdispatch",
    "relay",
    "ruler",
    "service",
]

_HAPROXY: Final = """\
global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    option splice-auto
    maxconn 4000
    timeout connect 15s
    timeout client 1h
    timeout server 1h
listen hop
    bind fd@{descriptor}{bind}
    server next 127.0.0.1:{port}{server}
"""


@dataclass(frozen=True)
class Leg:
    """The path between an agent and the relay: seconds in each direction, and bytes per second (0: no limit)."""

    delay: float = 0.0
    rate: float = 0.0


@dataclass
class Chain:
    """A path to the service: its entry ports, and the processes on it."""

    name: str
    ports: list[int]
    service: int  # the service's own port
    programs: list[Program] = field(default_factory=list)

    @property
    def port(self) -> int:
        """The first entry port."""
        return self.ports[0]

    @property
    def pids(self) -> list[int]:
        """The measured processes, without delay lines and without a TLS proxy in front."""
        return [program.pid for program in self.programs]

    @property
    def resident(self) -> list[int]:
        """Resident bytes of each process."""
        return [program.resident for program in self.programs]


def haproxy() -> str | None:
    """The program, including server directories; None if it is missing."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/sbin")


def has_ruler() -> bool:
    """Whether HAProxy is installed."""
    return haproxy() is not None


@contextmanager
def service(folder: Path) -> Iterator[int]:
    """Run the service; yields its port."""
    processes = Processes(folder)
    try:
        yield int(processes.start("service", PYTHON, "-m", "bench.service").says(r"^\d+$"))
    finally:
        processes.stop()


def bare(service_port: int) -> Chain:
    """Return the chain without proxies."""
    return Chain("bare", [service_port], service_port)


def _line(processes: Processes, port: int, leg: Leg | None) -> int:
    """Start a delay line to ``port`` if ``leg`` is given; returns the port to use."""
    if leg is None:
        return port
    command = [PYTHON, "-m", "bench.delay_line", str(port), str(leg.delay), str(leg.rate)]
    return int(processes.start("line", *command).says(r"^\d+$"))


@contextmanager
def ruler(
    folder: Path, service_port: int, *, legs: tuple[Leg, Leg] | None = None, tls: Path | None = None
) -> Iterator[Chain]:
    """Run three HAProxy processes, which inherit their listening sockets. ``tls`` is a certificate with its key."""
    processes = Processes(folder)
    program = haproxy()
    assert program is not None, "has_ruler() comes first"

    def hop(name: str, port: int, *, bind: bool, server: bool) -> tuple[Program, int]:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        entered = listener.getsockname()[1]
        config = folder / f"{name}.cfg"
        text = _HAPROXY.format(
            descriptor=listener.fileno(),
            port=port,
            bind=f" ssl crt {tls}" if tls and bind else "",
            server=" ssl verify none" if tls and server else "",
        )
        config.write_text(text)
        with listener:
            started = processes.start(
                f"ruler-{name}", program, "-db", "-f", str(config), descriptors=[listener.fileno()]
            )
        return started, entered

    try:
        host_leg, client_leg = legs or (None, None)
        host, port = hop("host", service_port, bind=True, server=False)
        middle, port = hop("relay", _line(processes, port, host_leg), bind=True, server=True)
        client, port = hop("client", _line(processes, port, client_leg), bind=False, server=True)
        yield Chain("ruler", [port], service_port, [middle, host, client])
    finally:
        processes.stop()


def environment(folder: Path, *, plain: bool) -> dict[str, str]:
    """Variables that keep kdispatch's processes to this folder, and with ``plain`` on asyncio's own loop."""
    return {
        "KDISPATCH_CONFIG_DIR": str(folder / "config"),
        "KDISPATCH_STATE_DIR": str(folder / "state"),
    } | ({"KDISPATCH_NO_UVLOOP": "1"} if plain else {})


def relay(processes: Processes, *options: str) -> tuple[Program, str]:
    """Start a relay; returns the process and its address."""
    database = str(processes.folder / "relay.db")
    ending = ("--drain-time", "0")  # no other relay is there to take over
    command = (KDISPATCH, "relay", "serve", "--listen", "127.0.0.1:0", "--database", database, *ending, *options)
    started = processes.start("relay", *command)
    return started, started.says(r"listening on (https?://[^\s\"]+)")


@contextmanager
def kdispatch(
    folder: Path,
    service_port: int,
    *,
    plain: bool = False,
    legs: tuple[Leg, Leg] | None = None,
    tls: Path | None = None,
    caddy: bool = False,
    sessions: int = 0,
) -> Iterator[Chain]:
    """Run relay, host agent and client agent like users do.

    ``plain`` keeps asyncio's own loop. ``tls`` is a certificate with its key for the relay itself; with ``caddy`` a
    real Caddy with the project's Caddyfile does TLS in front of the relay. With ``sessions`` one process has that many
    hosts, each with its own service, and another process has as many clients.
    """
    processes = Processes(folder, environment(folder, plain=plain))
    try:
        options = ["--tls-cert", str(tls), "--tls-key", str(tls)] if tls else []
        if tls:
            processes.environment["SSL_CERT_FILE"] = str(tls)
        switch, url = relay(processes, *options)
        if caddy:
            url = in_front(processes, url)
        services = [f"web{number}" for number in range(max(sessions, 1))]
        token = processes.run(PYTHON, "-m", "bench.account", url, *services).strip()
        processes.environment["KDISPATCH_TOKEN"] = token
        urls = _through_lines(processes, url, legs)
        started = (
            _fleet(processes, urls, service_port, sessions) if sessions else _agents(processes, urls, service_port)
        )
        host, client, ports = started
        yield Chain("kdispatch", ports, service_port, [switch, host, client])
    finally:
        processes.stop()


def _through_lines(processes: Processes, url: str, legs: tuple[Leg, Leg] | None) -> tuple[str, str]:
    """Start the delay lines; returns the relay's URL for the host and for the client."""
    start, _, port = url.rpartition(":")
    host, client = (_line(processes, int(port), leg) for leg in legs or (None, None))
    return f"{start}:{host}", f"{start}:{client}"


def _agents(processes: Processes, urls: tuple[str, str], service_port: int) -> tuple[Program, Program, list[int]]:
    agent = (KDISPATCH, "agent")
    host = processes.start(
        "host", *agent, "host", "ann/web0", "--port", str(service_port), "--relay", urls[0], "--drain-time", "0"
    )
    host.says("is offered as")
    client = processes.start("client", *agent, "connect", "ann/web0", "--relay", urls[1], "--drain-time", "0")
    return host, client, [int(client.says(r"is reached by 127\.0\.0\.1:(\d+)"))]


def _fleet(
    processes: Processes, urls: tuple[str, str], service_port: int, count: int
) -> tuple[Program, Program, list[int]]:
    fleet = (PYTHON, "-m", "bench.fleet")
    host = processes.start("hosts", *fleet, "hosts", urls[0], str(count), str(service_port))
    host.says("^ready$")
    client = processes.start("clients", *fleet, "clients", urls[1], str(count))
    return host, client, [int(port) for port in client.says(r"^ports (.+)$").split()]
