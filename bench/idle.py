"""Memory of an idle stream, and of an idle session, in each process: python -m bench.idle [--loop asyncio|uvloop]

Streams are opened one after another, echo 64 B, and stay. The figure is a slope: the difference of a process's
anonymous memory at 1,000 and at 400 streams, divided by 600. This excludes the cost of a start, and the holes that the
start left in the heap and the first few hundred streams fill: from 0 to 200 streams a relay looks a third cheaper.
Anonymous pages are those that the process itself has written (heap, stacks). Shared code is not counted, and neither
is the kernel's memory of a connection: a socket of 2-4 KiB, and bytes in flight, of which there are none here. The
ruler's connections cost the kernel as much.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import chains
from bench.processes import PYTHON, Processes, Program

__all__ = ["idle_sessions", "idle_streams", "ruler_streams"]

Counts = tuple[int, int]  #: the two counts of the slope
STREAMS: Final[Counts] = (400, 1000)  # a client's session may have 1,024
SESSIONS: Final[Counts] = (100, 600)
#: Seconds until no frame of an open is in flight: its last acknowledgement is delayed by 100 ms.
REST: Final = 1.0
_MESSAGE: Final = bytes(64)
_LISTED_WAIT: Final = 30.0
_LOOPS: Final = ("asyncio", "uvloop")


def anonymous(pid: int) -> int:
    """Bytes of a process's memory that belong to no file."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("\nAnonymous:")[1].split()[0]) * 1024


def _open(port: int, count: int, into: list[socket.socket]) -> None:
    while len(into) < count:
        connection = socket.create_connection(("127.0.0.1", port))
        into.append(connection)
        connection.sendall(b"e" + _MESSAGE)  # the service echoes the rest
        got = 0
        while got < len(_MESSAGE):
            data = connection.recv(len(_MESSAGE))
            if not data:
                raise RuntimeError(f"connection {len(into)} was closed")
            got += len(data)


def _sizes(pids: Sequence[int]) -> list[int]:
    time.sleep(REST)
    return [anonymous(pid) for pid in pids]


def _slope(chain: chains.Chain, counts: Counts) -> dict[str, float]:
    """Bytes per stream in each process."""
    few, many = counts
    connections: list[socket.socket] = []
    try:
        _open(chain.port, few, connections)
        before = _sizes(chain.pids)
        _open(chain.port, many, connections)
        after = _sizes(chain.pids)
    finally:
        for connection in connections:
            connection.close()
    roles = ("relay", "host", "client")
    return {role: (after[n] - before[n]) / (many - few) for n, role in enumerate(roles)}


def idle_streams(loop: str, counts: Counts = STREAMS) -> dict[str, float]:
    """Bytes per idle stream in the relay, the host agent and the client agent, with the loop of this name."""
    with (
        tempfile.TemporaryDirectory() as name,
        chains.service(folder := Path(name)) as service,
        chains.kdispatch(folder / "chain", service, plain=loop == "asyncio") as chain,
    ):
        return _slope(chain, counts)


def ruler_streams() -> dict[str, float]:
    """The same for the ruler's three HAProxy processes in these roles."""
    with (
        tempfile.TemporaryDirectory() as name,
        chains.service(folder := Path(name)) as service,
        chains.ruler(folder / "chain", service) as chain,
    ):
        return _slope(chain, STREAMS)


def idle_sessions(loop: str, counts: Counts = SESSIONS) -> float:
    """Bytes per idle host session in the relay."""
    with tempfile.TemporaryDirectory() as name:
        processes = Processes(Path(name), chains.environment(Path(name), plain=loop == "asyncio"))
        try:
            relay, url = chains.relay(processes)
            token = processes.run(PYTHON, "-m", "bench.account", url, "web").strip()
            command = (PYTHON, "-m", "bench.idle_agents", url, "ann/web", token)
            agents = processes.start("agents", *command, stdin=subprocess.PIPE)
            few, many = (_listed(agents, relay, count) for count in counts)
            return (many - few) / (counts[1] - counts[0])
        finally:
            processes.stop()


def _listed(agents: Program, relay: Program, count: int) -> int:
    """The relay's memory with ``count`` sessions."""
    assert agents.process.stdin is not None
    agents.process.stdin.write(f"{count}\n".encode())
    agents.process.stdin.flush()
    agents.says(f"^{count} are listed", _LISTED_WAIT)
    return _sizes([relay.pid])[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description="Memory of idle streams and sessions.")
    parser.add_argument("--loop", choices=_LOOPS, action="append")
    for loop in parser.parse_args().loop or _LOOPS:
        streams = ", ".join(f"{name} {size:.0f}" for name, size in idle_streams(loop).items())
        print(f"{loop}: bytes a stream: {streams}; a session: relay {idle_sessions(loop):.0f}", flush=True)
    print("ruler: bytes a stream:", ", ".join(f"{name} {size:.0f}" for name, size in ruler_streams().items()))


if __name__ == "__main__":
    main()
