"""The main use case on real sockets, narrated and checked: python -m tests.demo.first_tunnel, or make demo.

It runs the product itself in separate processes, as people start it, on loopback
with free ports: a relay, hosts, a client. Only the service
(tests/demo/service.py) and this program are made for the demonstration.
If a check fails it ends with status 1, and with the logs of all processes.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.demo.processes import KDISPATCH, NotReadyError, Program, Programs
from tests.demo.service import CHUNK, chunks, send, sha256

SERVICE: Final = "ann/web"
CONNECTIONS: Final = 400
UNFAIR: Final = 1e-6  #: a fair choice is more uneven than this once in a million runs
BULK: Final = 200 * 1000 * 1000  #: bytes in each direction
STREAMS: Final = 200
ECHO: Final = 32 * 1024  #: bytes over each stream
SKIPPED: Final = 50  #: connections while one host's service is down
PATIENCE: Final = 55.0  #: time limit of the whole run, in seconds


class CheckFailedError(Exception):
    """A check failed."""


@dataclass
class Demo:
    """The running processes, and the results of the checks so far."""

    programs: Programs
    began: float = field(default_factory=time.monotonic)
    passed: int = 0
    relay_url: str = ""
    relay: Program | None = None
    client: Program | None = None
    port: int = 0
    hosts: list[Program] = field(default_factory=list)
    service_ports: list[int] = field(default_factory=list)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:5.1f} s  {text}", flush=True)

    def check(self, good: bool, text: str) -> None:
        """Print a check that passes; raise if it fails."""
        if not good:
            raise CheckFailedError(text)
        self.passed += 1
        self.say(f"  ok: {text}")

    async def kdispatch(self, *arguments: str) -> str:
        """Run a command, show it, and return its standard output."""
        self.say(f"  $ kdispatch {' '.join(arguments)}")
        ended = await self.programs.run(KDISPATCH, *arguments)
        if ended.status != 0:
            raise CheckFailedError(f"kdispatch {' '.join(arguments)}: exit {ended.status}\n{ended.err}")
        return ended.out

    async def start(self, name: str, *arguments: str) -> Program:
        """Start a command that keeps running, and show it."""
        self.say(f"  $ kdispatch {' '.join(arguments)} &")
        return await self.programs.start(name, KDISPATCH, *arguments)

    async def live_hosts(self) -> int:
        """Return how many hosts the relay lists."""
        return len((await self.kdispatch("service", "hosts", SERVICE, "--quiet")).split())

    @contextlib.asynccontextmanager
    async def connection(
        self, command: str, port: int = 0
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A TCP connection through the tunnel (or to ``port``) with the service's command sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port, limit=CHUNK)
        try:
            writer.write(f"{command}\n".encode())
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, command: str, port: int = 0) -> str:
        """Send a command and return the service's one-line answer."""
        async with self.connection(command, port) as (reader, _):
            return (await reader.readline()).decode().strip()


async def relay_and_service(demo: Demo) -> None:
    demo.say("A relay with an SQLite database; sign-up and a service by the command line.")
    database = str(demo.programs.folder / "relay.db")
    demo.relay = await demo.start("relay", "relay", "serve", "--listen", "127.0.0.1:0", "--database", database)
    demo.relay_url = await demo.relay.says(r"listening on (http://127\.0\.0\.1:\d+)")
    await demo.kdispatch("sign-up", "ann", "--relay", demo.relay_url)
    await demo.kdispatch("service", "create", "web")
    listed = await demo.kdispatch("service", "list", "--quiet")
    demo.check(listed.split() == [SERVICE], f"{SERVICE} exists")


async def add_host(demo: Demo, name: str) -> Program:
    """Start a test service and an agent that offers it; returns the service's process."""
    service = await demo.programs.start(f"service {name}", sys.executable, "-m", "tests.demo.service", "--name", name)
    port = await service.says(r"listens on (\d+)$")
    demo.service_ports.append(int(port))
    demo.hosts.append(await demo.start(f"host {name}", "agent", "host", SERVICE, "--port", port))
    await demo.hosts[-1].says(f"is offered as {SERVICE}")
    return service


async def two_hosts_one_client(demo: Demo) -> None:
    demo.say("Two hosts, each with a service of its own behind it, and a client.")
    await asyncio.gather(add_host(demo, "A"), add_host(demo, "B"))
    demo.check(await demo.live_hosts() == 2, f"the relay lists two hosts of {SERVICE}")
    demo.client = await demo.start("client", "agent", "connect", SERVICE)
    demo.port = int(await demo.client.says(r"is reached by 127\.0\.0\.1:(\d+)$"))
    demo.check(await demo.ask("who") in {"A", "B"}, f"127.0.0.1:{demo.port} leads to {SERVICE}")


async def fair_choice(demo: Demo) -> None:
    demo.say(f"{CONNECTIONS} connections, 20 at a time: which host does each get?")
    split: collections.Counter[str] = collections.Counter()
    began = time.monotonic()

    async def worker() -> None:
        for _ in range(CONNECTIONS // 20):
            split[await demo.ask("who")] += 1

    await asyncio.gather(*(worker() for _ in range(20)))
    rate = CONNECTIONS / (time.monotonic() - began)
    demo.check(set(split) == {"A", "B"}, f"A got {split['A']}, B got {split['B']} ({rate:.0f} connections a second)")
    p = two_sided(split["A"], CONNECTIONS)
    demo.check(p > UNFAIR, f"a fair coin is this uneven with probability {p:.3g} (must exceed {UNFAIR:g})")


def two_sided(heads: int, tosses: int) -> float:
    """The probability that a fair coin is at least as uneven as this (exact binomial test)."""
    distance = abs(2 * heads - tosses)
    return sum(math.comb(tosses, k) for k in range(tosses + 1) if abs(2 * k - tosses) >= distance) / (1 << tosses)


async def bulk(demo: Demo) -> None:
    demo.say(f"{BULK // 10**6} MB each way on one connection.")
    data = os.urandom(BULK)
    began = time.monotonic()
    async with demo.connection("sink") as (reader, writer):
        await send(writer, data)
        writer.write_eof()
        count = int(await reader.readline())
        speed = BULK / (time.monotonic() - began) / 1e6
        digest = (await reader.readline()).decode().strip()
    demo.check(
        count == BULK and digest == sha256(data), f"to the service: {speed:.0f} MB/s, SHA-256 {digest[:16]}... equal"
    )
    del data
    async with demo.connection(f"source {BULK}") as (reader, _):
        digest = (await reader.readline()).decode().strip()
        began = time.monotonic()
        received = [piece async for piece in chunks(reader)]
        speed = BULK / (time.monotonic() - began) / 1e6
    size, got = sum(map(len, received)), sha256(*received)
    demo.check(size == BULK and digest == got, f"from the service: {speed:.0f} MB/s, SHA-256 {digest[:16]}... equal")


async def many_streams(demo: Demo) -> None:
    demo.say(f"{STREAMS} connections at the same time, {ECHO // 1024} KiB of random bytes there and back on each.")
    all_open = asyncio.Barrier(STREAMS + 1)
    go = asyncio.Event()

    async def echo() -> bool:
        data = os.urandom(ECHO)
        async with demo.connection("echo") as (reader, writer):
            writer.write(data[:1])
            back = await reader.readexactly(1)
            await all_open.wait()
            await go.wait()
            writer.write(data[1:])
            writer.write_eof()
            return back + await reader.read(-1) == data

    async with asyncio.TaskGroup() as group:
        echoes = [group.create_task(echo()) for _ in range(STREAMS)]
        await all_open.wait()
        table = await demo.kdispatch("service", "hosts", SERVICE)
        counted = sum(int(row.split()[2]) for row in table.splitlines()[1:])
        demo.check(counted == STREAMS, f"the relay counts {counted} open connections")
        began = time.monotonic()
        go.set()
    equal = sum(task.result() for task in echoes)
    took = time.monotonic() - began
    demo.check(equal == STREAMS, f"{equal} of {STREAMS} got back exactly what they sent, in {took:.2f} s")


async def half_close(demo: Demo) -> None:
    demo.say("Half-close: each side ends its own direction first, and still gets the rest of the other's.")
    data = os.urandom(100_000)
    async with demo.connection("sink") as (reader, writer):
        writer.write(data)
        writer.write_eof()
        answer = (await reader.read(-1)).decode().split()
    demo.check(
        answer == [str(len(data)), sha256(data)], "the client ends first and gets the answer computed at the end"
    )
    async with demo.connection("late here") as (reader, writer):
        greeting = await reader.read(-1)
        writer.write(data)
        await writer.drain()
    for _ in range(100):
        kept = {await demo.ask("recall here", port) for port in demo.service_ports}
        if greeting == b"hello\n" and sha256(data) in kept:
            break
        await asyncio.sleep(0.02)
    demo.check(sha256(data) in kept, "the service ends first and still gets everything sent after that")


async def dead_service(demo: Demo) -> None:
    demo.say("A third host, whose service is killed while the relay still lists the host.")
    service = await add_host(demo, "C")
    await service.end(signal.SIGKILL)
    # The agent checks its port every 2 s, first 2 s after its start: until then it offers the service.
    names = collections.Counter(await asyncio.gather(*(demo.ask("who") for _ in range(SKIPPED))))
    served = names["A"] + names["B"]
    demo.check(
        served == SKIPPED, f"{served} of {SKIPPED} connections were served, by A {names['A']}, by B {names['B']}"
    )
    await demo.hosts[-1].says("is withdrawn until it is back")
    demo.check(await demo.live_hosts() == 2, "the host without its service has withdrawn itself")


async def no_live_host(demo: Demo) -> None:
    demo.say("Ctrl-C to all hosts.")
    statuses = await asyncio.gather(*(host.end() for host in demo.hosts))
    demo.check(set(statuses) == {0}, "each host ended with exit 0")
    assert demo.client is not None
    try:
        answer = await demo.ask("who")
    except ConnectionResetError:
        answer = "reset"
    demo.check(answer == "reset", "a connection through the running client is reset, not left hanging")
    line = await demo.client.says(r"\[no_live_host\]$")
    demo.check(True, f"and the client says why: {line}")
    demo.say(f"  $ kdispatch agent connect {SERVICE} --wait 0")
    ended = await demo.programs.run(KDISPATCH, "agent", "connect", SERVICE, "--wait", "0")
    demo.check(ended.status == 3 and "[no_live_host]" in ended.err, "a new client ends with exit 3 and [no_live_host]")


async def clean_end(demo: Demo) -> None:
    demo.say("Ctrl-C to the client, SIGTERM to the relay.")
    assert demo.client is not None
    assert demo.relay is not None
    demo.check(await demo.client.end() == 0, "the client ended with exit 0")
    demo.check(await demo.relay.end(signal.SIGTERM) == 0, "the relay ended with exit 0")


STEPS: Final = (
    relay_and_service,
    two_hosts_one_client,
    fair_choice,
    bulk,
    many_streams,
    half_close,
    dead_service,
    no_live_host,
    clean_end,
)


async def main() -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="kdispatch-demo-") as folder:
        async with Programs(Path(folder)) as programs:
            demo = Demo(programs)
            step = STEPS[0]
            try:
                async with asyncio.timeout(PATIENCE):
                    for step in STEPS:
                        await step(demo)
            except Exception as error:  # noqa: BLE001 - whatever it is, the logs go with it
                reason = f"more than {PATIENCE:g} s" if isinstance(error, TimeoutError) else describe(error)
                print(f"\nThe logs of the processes:\n\n{programs.logs()}\n")
                print(f"FAILED in {step.__name__}: {reason}", flush=True)
                return 1
            demo.say(f"All {demo.passed} checks hold.")
            return 0


def describe(error: BaseException) -> str:
    """Describe the failure, in plain words if it is a known one."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(sorted({describe(inner) for inner in error.exceptions}))
    known = isinstance(error, CheckFailedError | NotReadyError)
    return str(error) if known else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
