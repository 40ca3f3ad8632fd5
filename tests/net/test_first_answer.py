"""How many round trips a new connection costs: each agent is 25 ms from the relay, so a round trip is 100 ms."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import pytest

from bench.delay_line import DelayLine, delay_line
from tests.net.harness import Network, sizes
from tests.net.tcp import Tcp, banner, echo, service

pytestmark = pytest.mark.slow

_LEG: Final = 0.025  # seconds from an agent to the relay, and back again
_ROUND_TRIP: Final = 4 * _LEG
_IDLE: Final = 0.15  # seconds without any traffic: longer than a round trip, and than a delayed ACK


@dataclass(frozen=True)
class _Size:
    """The number of connections, and the factor on the bound beyond the ideal time."""

    times: int
    slack: int


@dataclass(frozen=True)
class _Case:
    """A way to begin, with the ideal, least and greatest number of round trips until the first byte of the answer."""

    serve: Callable[[Tcp], Awaitable[None]]
    request: bytes
    ideal: float
    least: float
    most: float


async def _first_byte(port: int, request: bytes) -> float:
    """Seconds from connect() to the first byte."""
    began = time.monotonic()
    async with await Tcp.connect(port) as tcp:
        if request:
            await tcp.send(request)
        assert await tcp.receive(1)
        took = time.monotonic() - began
        tcp.finish()
        await tcp.receive_all()
    return took


async def _round_trips(line: DelayLine, port: int, request: bytes, times: int) -> list[float]:
    took = []
    for _ in range(times):
        await line.rest(_IDLE)
        took.append(await _first_byte(port, request) / _ROUND_TRIP)
    return sorted(took)


@pytest.mark.parametrize(
    "case",
    [
        # OPEN and TRYING first, then the request travels while the host dials; it waits for OPENED only at the relay.
        pytest.param(_Case(echo, b"?", ideal=1.5, least=1.45, most=1.8), id="client-first"),
        pytest.param(_Case(banner, b"", ideal=1.0, least=0.95, most=1.3), id="service-first"),
    ],
)
@pytest.mark.parametrize("size", sizes(_Size(3, slack=10), _Size(7, slack=1)))
async def test_first_byte_of_an_answer(network: Network, case: _Case, size: _Size) -> None:
    """A request's answer begins 1.5 round trips after connect(); a service that sends first arrives after one."""
    name = await network.service()
    relay = int(network.url.rpartition(":")[2])
    async with service(case.serve) as running, delay_line(relay, _LEG) as line:
        network.environment["KDISPATCH_RELAY"] = f"http://127.0.0.1:{line.port}"
        await network.host(name, running.port)
        _, port = await network.connect(name)
        await _first_byte(port, case.request)
        trips = await _round_trips(line, port, case.request, size.times)
    print("round trips until the first byte:", " ".join(f"{trip:.2f}" for trip in trips))
    assert case.least <= statistics.median(trips) <= case.ideal + size.slack * (case.most - case.ideal)
