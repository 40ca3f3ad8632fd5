"""What an idle stream, and an idle session, cost each process: python -m bench.idle [--loop asyncio|uvloop]

Streams are opened one after another, echo 64 B, and stay. The figure is a slope: what anonymous memory a process has
more at 1,000 streams than at 400, for each of the 600. So what a start costs falls out, as do the holes that it left
in the heap and that the first few hundred streams fill: from 0 to 200 a relay looks a third cheaper than it is.
Anonymous pages are what the process itself has written (heap, stacks). The code that it shares with others is left
out, and so is what the kernel keeps of a connection: a socket of 2-4 KiB, and what is under way, which is nothing
here. The ruler's connections cost the kernel as much.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

__all__ = ["idle_sessions", "idle_streams", "ruler_streams"]

KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
Counts = tuple[int, int]  #: between which the slope is taken
STREAMS: Final[Counts] = (400, 1000)  # a client's session may have 1,024
SESSIONS: Final[Counts] = (100, 600)
#: Seconds after which nothing of an open is under way: its last acknowledgement is 100 ms late.
REST: Final = 1.0
_MESSAGE: Final = bytes(64)
_START_WAIT: Final = 30.0
_LOOPS: Final = {"asyncio": "1", "uvloop": "0"}


def anonymous(pid: int) -> int:
    """Bytes of a process that belong to no file."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("\nAnonymous:")[1].split()[0]) * 1024


class _Programs:
    """Processes, what they print, and their end."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / name).open("wb") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
            )
        self.running[name] = process
        return process

    def says(self, name: str, pattern: str) -> str:
        """The first match in what it printed."""
        deadline = time.monotonic() + _START_WAIT
        while time.monotonic() < deadline:
            if found := re.search(pattern, (self.folder / name).read_text()):
                return found[1]
            time.sleep(0.02)
        raise RuntimeError(f"{name} never said {pattern!r}: {(self.folder / name).read_text()}")

    def sizes(self) -> dict[str, int]:
        return {name: anonymous(process.pid) for name, process in self.running.items()}

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=15)


@contextlib.contextmanager
def _programs(**environment: str) -> Iterator[_Programs]:
    with tempfile.TemporaryDirectory() as folder:
        paths = {f"KDISPATCH_{name}_DIR": f"{folder}/{name.lower()}" for name in ("CONFIG", "STATE")}
        made = _Programs(Path(folder), {**paths, **environment})
        try:
            yield made
        finally:
            made.stop()


def _relay(programs: _Programs, loop: str) -> tuple[str, str, str]:
    """Start a relay; returns its address, a service on it and an admin's token."""
    programs.environment["KDISPATCH_NO_UVLOOP"] = _LOOPS[loop]
    database = str(programs.folder / "relay.db")
    programs.start("relay", KDISPATCH, "relay", "serve", "--listen", "127.0.0.1:0", "--database", database)
    url = programs.says("relay", r"(http://\S+)")

    def run(*words: str) -> bytes:
        return subprocess.run([KDISPATCH, *words], env=programs.environment, check=True, capture_output=True).stdout

    token = json.loads(run("sign-up", "bench", "--relay", url, "--json"))["token"]
    run("service", "create", "bench")
    return url, "bench/bench", token


class _Echo:
    """A service that answers what it hears, in a thread of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._over = False
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes it
        self._thread.join()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._over:
                for key, _ in selector.select():
                    if key.fileobj is self._listener:
                        selector.register(self._listener.accept()[0], selectors.EVENT_READ)
                    else:
                        self._answer(selector, key.fileobj)  # type: ignore[arg-type]  # all are sockets
            for key in selector.get_map().values():
                key.fileobj.close()  # type: ignore[union-attr]

    @staticmethod
    def _answer(selector: selectors.BaseSelector, connection: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = connection.recv(65536)
            connection.sendall(data)
        if not data:
            selector.unregister(connection)
            connection.close()


def _open(port: int, count: int, into: list[socket.socket]) -> None:
    while len(into) < count:
        connection = socket.create_connection(("127.0.0.1", port))
        into.append(connection)
        connection.sendall(_MESSAGE)
        got = 0
        while got < len(_MESSAGE):
            data = connection.recv(len(_MESSAGE))
            if not data:
                raise RuntimeError(f"connection {len(into)} was closed")
            got += len(data)


def _slope(programs: _Programs, port: int, counts: Counts) -> dict[str, float]:
    """Bytes a stream in each of the processes."""
    few, many = counts
    connections: list[socket.socket] = []
    try:
        _open(port, few, connections)
        time.sleep(REST)
        before = programs.sizes()
        _open(port, many, connections)
        time.sleep(REST)
        after = programs.sizes()
    finally:
        for connection in connections:
            connection.close()
    return {name: (after[name] - before[name]) / (many - few) for name in before}


def idle_streams(loop: str, counts: Counts = STREAMS) -> dict[str, float]:
    """Bytes an idle stream costs the relay, the host agent and the client agent, on the loop of this name."""
    with _Echo() as echo, _programs() as programs:
        url, service, token = _relay(programs, loop)
        programs.environment |= {"KDISPATCH_RELAY": url, "KDISPATCH_TOKEN": token}
        agent = (KDISPATCH, "agent")
        programs.start("host", *agent, "host", service, "--port", str(echo.port), "--drain-time", "0")
        programs.says("host", "(is offered)")
        programs.start("client", *agent, "connect", service, "--drain-time", "0")
        return _slope(programs, int(programs.says("client", r"127\.0\.0\.1:(\d+)")), counts)


def idle_sessions(loop: str, counts: Counts = SESSIONS) -> float:
    """Bytes an idle host's session costs the relay."""
    with _programs() as programs:
        url, service, token = _relay(programs, loop)
        agents = programs.start("agents", sys.executable, "-m", "bench.idle_agents", url, service, token)
        sizes = []
        for count in counts:
            assert agents.stdin is not None
            agents.stdin.write(f"{count}\n".encode())
            agents.stdin.flush()
            programs.says("agents", f"({count} are listed)")
            time.sleep(REST)
            sizes.append(programs.sizes()["relay"])
        return (sizes[1] - sizes[0]) / (counts[1] - counts[0])


_CONFIGURATION: Final = """
global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen chain
    bind 127.0.0.1:{port}
    server next 127.0.0.1:{next}
"""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ruler_streams() -> dict[str, float]:
    """The same for three HAProxy processes in a row: the first, the middle, the last."""
    with _Echo() as echo, _programs() as programs:
        port = echo.port
        for name in ("last", "middle", "first"):
            port, after = _free_port(), port
            file = programs.folder / f"{name}.cfg"
            file.write_text(_CONFIGURATION.format(port=port, next=after))
            programs.start(name, "haproxy", "-db", "-f", str(file))
        time.sleep(0.5)
        return _slope(programs, port, STREAMS)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description="Memory of idle streams and sessions.")
    parser.add_argument("--loop", choices=sorted(_LOOPS), action="append")
    for loop in parser.parse_args().loop or sorted(_LOOPS):
        streams = ", ".join(f"{name} {size:.0f}" for name, size in idle_streams(loop).items())
        print(f"{loop}: bytes a stream: {streams}; a session: relay {idle_sessions(loop):.0f}", flush=True)
    print("ruler: bytes a stream:", ", ".join(f"{name} {size:.0f}" for name, size in ruler_streams().items()))


if __name__ == "__main__":
    main()
