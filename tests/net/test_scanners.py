"""Acceptance point 5 of issue 8: hostile connections and requests cost a relay next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import pytest

from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from tests.core.wire import ws_frame
from tests.net.harness import Process, Relay, sizes
from tests.net.scanners import NAME, cpu_seconds, ruler, scan
from tests.relay.test_door import Visitor, relay_with
from tests.relay.test_gate import _UPGRADE, _Agent, _request

pytestmark = pytest.mark.slow

_RATIO: Final = 1.2  # of what a bare aiohttp needs for its 404
_GROWTH: Final = 1 << 20  # bytes; what one request in ten would leave behind is twice that


# --- sockets that say nothing of use ---------------------------------------------------------------


@dataclass(frozen=True)
class Siege:
    """This many sockets; each must be gone ``within`` this many seconds, and an agent has a session in ``honest``."""

    sockets: int
    within: float
    honest: float
    limits: Limits


_HELLO: Final = ws_frame(0x82, frame(frames.HELLO, payload=b"{" + b" " * 9999), masked=True)
_HEAD: Final = b"GET /api/v1/tunnel HTTP/1.1\r\nX: " + b"x" * 9999
#: What is sent at first, and what then comes byte by byte.
_KINDS: Final = (
    (b"", b""),
    (b"", _HEAD),
    (_request(_UPGRADE), b""),
    (_request(_UPGRADE), _HELLO),
    (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", _HEAD),
)


@dataclass
class Gone:
    """When the hostile sockets were gone, in seconds from their connection."""

    after: list[float] = field(default_factory=list)

    async def besiege(self, port: int, number: int, pause: float) -> None:
        first, rest = _KINDS[number % len(_KINDS)]
        began = asyncio.get_running_loop().time()
        async with Visitor.of(port) as visitor:
            visitor.writer.write(first)
            dribbling = asyncio.create_task(visitor.dribble(rest, pause))
            with contextlib.suppress(ConnectionError):
                while await visitor.reader.read(65536):
                    pass
            dribbling.cancel()
            self.after.append(asyncio.get_running_loop().time() - began)


@pytest.mark.parametrize("siege", sizes(Siege(60, 5.0, 10.0, Limits(hello=0.7)), Siege(500, 15.0, 1.0, DEFAULT_LIMITS)))
async def test_silent_and_dribbling_sockets(tmp_path: Path, siege: Siege) -> None:
    """Silent and slow sockets are closed in time, and meanwhile an honest agent has its session within a second."""
    async with relay_with(tmp_path, siege.limits) as relay:
        gone = Gone()
        pause = siege.limits.hello / 20
        tasks = [asyncio.create_task(gone.besiege(relay.port, n, pause)) for n in range(siege.sockets)]
        waits: list[float] = []
        loop = asyncio.get_running_loop()
        most = 0
        while not all(task.done() for task in tasks):
            began = loop.time()
            async with asyncio.timeout(10), _Agent.of(relay, len(waits).to_bytes(32, "big")):
                waits.append(loop.time() - began)
            most = max(most, len(relay.arrivals))
            await asyncio.sleep(pause)
        await asyncio.gather(*tasks)
        print(f"gone after {min(gone.after):.1f} to {max(gone.after):.1f} s; a session within {max(waits):.3f} s")
        assert len(gone.after) == siege.sockets and max(gone.after) < siege.within
        assert len(waits) > 5 and max(waits) < siege.honest
        assert most >= siege.sockets * 0.9
        assert relay.arrivals.refused == {"timed_out": siege.sockets}
        assert (len(relay.arrivals), relay.gate.state().cuts) == (0, {})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets another process's limits")
async def test_no_descriptor_is_left(scanned: Relay) -> None:
    """With silent sockets on all its descriptors, a relay closes some of them for an honest agent."""
    running, port = scanned.running, scanned.address.port
    soft, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (running.usage.descriptors + 20, hard))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(resource.prlimit, running.pid, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(60):
            await stack.enter_async_context(Visitor.of(port))
        async with asyncio.timeout(20), _Agent.of(scanned.address):
            pass
    assert "Traceback" not in scanned.running.text
    assert _refused(scanned)["busy"] >= 1


# --- scanners ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """``rounds`` of ``requests`` each, which may cost ``ratio`` times the bare aiohttp."""

    rounds: int
    requests: int
    ratio: float


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    relay = Relay(tmp_path_factory.mktemp("scanned"))
    try:
        asyncio.run(relay.start("--allowed-host", NAME))
        yield relay
    finally:
        relay.stop()


@pytest.fixture
def stopped() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("size", sizes(Scan(1, 400, 10 * _RATIO), Scan(5, 2000, _RATIO)))
async def test_scanners(scanned: Relay, stopped: ExitStack, tmp_path: Path, size: Scan) -> None:
    """Scanners' requests leave memory and log unchanged, and cost what a bare aiohttp's 404 costs."""
    bare, bare_port = await ruler(tmp_path)
    stopped.callback(bare.stop)
    relay, port = scanned.running, scanned.address.port
    for at in (bare_port, port):  # things that are made at the first request of a kind
        await scan(at, 400)
    before, said = relay.usage.anonymous, relay.text
    counted = sum(_refused(scanned).values())
    costs: list[tuple[float, float]] = []
    for _ in range(size.rounds):
        cost = [await _cost(process, at, size.requests) for process, at in ((bare, bare_port), (relay, port))]
        costs.append((cost[0], cost[1]))
    grown = relay.usage.anonymous - before
    ratio = statistics.median(ours / theirs for theirs, ours in costs)
    ours, theirs = (statistics.median(cost[n] for cost in costs) * 1e6 for n in (1, 0))
    print(
        f"{ours:.0f} us of CPU a request, a bare 404 {theirs:.0f} us, ratio {ratio:.2f}; memory {grown / 1024:+.0f} KiB"
    )
    assert relay.text == said
    assert grown < _GROWTH
    assert ratio < size.ratio
    assert sum(_refused(scanned).values()) - counted == size.rounds * size.requests


async def _cost(process: Process, port: int, requests: int) -> float:
    before = cpu_seconds(process)
    seen = await scan(port, requests)
    assert sum(seen.values()) == requests and set(seen) <= {404, 405, 421}
    return (cpu_seconds(process) - before) / requests


def _refused(relay: Relay) -> dict[str, int]:
    with urlopen(f"{relay.url}/api/v1/relay/state", timeout=30) as answer:
        found: dict[str, int] = json.load(answer)["refused"]
    return found
