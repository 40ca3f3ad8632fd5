"""How soon agents are back after an outage, in simulated time, computed from the schedule of waits."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

import pytest

from kdispatch.network.dialer import Dialer, Upgraded
from kdispatch.network.upgrade import Refusal
from kdispatch.relay_url import RelayUrl
from kdispatch.uplink import Uplink
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.aio.uplink_session import UplinkSession
from kdispatch_protocol.errors import KdispatchError
from tests.agent.played import played

_RELAY: Final = RelayUrl.parse("http://127.0.0.1:9")
_GRACE: Final = 120.0
_DIAL: Final = 0.05  # seconds for a connection and its handshakes
_SYNS: Final = (0.0, 1.0, 3.0, 7.0)  # seconds from the start of a connection to the kernel's SYNs
_STEP: Final = 8.0  # seconds after which a dial gives up

Dial = Callable[[float], Any]


async def _refused(back: float) -> None:
    """A port without a listener until ``back``."""
    if asyncio.get_running_loop().time() < back:
        raise KdispatchError("relay_unreachable")
    await asyncio.sleep(_DIAL)


async def _swallowed(back: float) -> None:
    """A path that drops every packet until ``back``."""
    began = asyncio.get_running_loop().time()
    answered = next((syn for syn in _SYNS if began + syn >= back), None)
    await asyncio.sleep(_STEP if answered is None else answered + _DIAL)
    if answered is None:
        raise KdispatchError("relay_unreachable")


async def _hangs(back: float) -> None:
    """A server in front of the relay that accepts requests, and never answers those from before ``back``."""
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(60 if began < back else _DIAL)


def _limits(seconds: int, code: str = "rate_limited") -> Dial:
    """A relay that requests this Retry-After while it is away."""

    async def dial(back: float) -> None:
        if asyncio.get_running_loop().time() < back:
            raise Refusal(code, "", final=False, retry_after=seconds)
        await asyncio.sleep(_DIAL)

    return dial


#: Servers in front of a relay that is away, whose 503 has a fixed Retry-After: Varnish's has 5 s.
_EDGES: Final = [_limits(5, "relay_unreachable"), _limits(300, "relay_unreachable")]


@dataclass
class _Path:
    """A dialer over a path that works again from ``back`` on."""

    dial: Dial
    back: float
    at: list[float] = field(default_factory=list)  # the time of each try
    relay: RelayUrl = _RELAY

    async def upgrade(self) -> Upgraded:
        self.at.append(asyncio.get_running_loop().time())
        await self.dial(self.back)
        return cast("Upgraded", self)

    @property
    def transport(self) -> _Path:
        return self

    def abort(self) -> None: ...


class _End(Uplink):
    """One end of a service that had a session for a minute, with waiting streams or none."""

    def __init__(self, path: _Path, *, waiting: int, spread: float) -> None:
        super().__init__(cast("Dialer", path), lambda _: None)
        self.driver = cast("EndpointDriver", _Driver(waiting))
        self.condition.connected_at = None
        self._backoff.spread = spread

    async def _begin(self, upgraded: Upgraded) -> UplinkSession:
        return cast("UplinkSession", upgraded)

    async def back_at(self) -> float:
        self._note_end(60.0, 0)
        await self._reconnect()
        return self.driver.loop.time()


class _Driver:
    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.loop = asyncio.get_running_loop()


def _returns(dial: Dial, back: float, ends: int, *, waiting: int = 1, spread: float = 0.5) -> list[float]:
    """When this many ends are back that all lost their sessions at 0."""

    async def all_of_them() -> list[float]:
        spreads = [random.uniform(0.5, spread) for _ in range(ends)]
        return await asyncio.gather(
            *(_End(_Path(dial, back), waiting=waiting, spread=each).back_at() for each in spreads)
        )

    return played(all_of_them())


def _pairs(ends: list[float]) -> list[float]:
    """When both ends of a service are back."""
    return [max(pair) for pair in zip(ends[::2], ends[1::2], strict=True)]


@pytest.fixture(autouse=True)
def same_every_time() -> None:
    random.seed(17)


@pytest.mark.parametrize("dial", [_refused, _swallowed, _hangs, _limits(2), *_EDGES])
def test_an_outage_just_below_the_grace(dial: Dial) -> None:
    """After an outage of 115 s, both ends are attached within the grace in at least 95 of 100 tries."""
    in_time = sum(at <= _GRACE for at in _pairs(_returns(dial, 115.0, 2 * 400)))
    assert in_time >= 0.95 * 400, f"{in_time} of 400"


@pytest.mark.parametrize("dial", [_refused, _swallowed, _hangs, *_EDGES])
@pytest.mark.parametrize("outage", [1.0, 5.0, 20.0, 30.0, 60.0, 90.0])
@pytest.mark.parametrize("waiting", [0, 1])
def test_services_are_back_soon(dial: Dial, outage: float, waiting: int) -> None:
    """After an outage of up to 90 s both ends are back 3 s later, in the median of 50 services, with streams or not."""
    later = [at - outage for at in _pairs(_returns(dial, outage, 2 * 50, waiting=waiting))]
    assert statistics.median(later) <= 3.0, f"{statistics.median(later):.2f} s"


@pytest.mark.parametrize("outage", [0.0, 3.0, 5.0, 30.0, 90.0])
def test_a_thousand_do_not_come_at_once(outage: float) -> None:
    """At most 65 of 1,000 agents come back in any tenth of a second, or 130 if the relay was hardly away."""
    at = sorted(_returns(_refused, outage, 1000, waiting=0, spread=2.0))
    busiest = max(sum(first <= one < first + 0.1 for one in at[number:]) for number, first in enumerate(at))
    assert busiest <= (65 if outage else 130), busiest


@pytest.mark.parametrize("dial", [_refused, _swallowed, _hangs, _limits(60), *_EDGES])
def test_tries_of_an_outage(dial: Dial) -> None:
    """An agent whose relay stays away tries at most 40 times in the first minute, and 20 in any later one."""

    async def tries() -> list[float]:
        path = _Path(dial, 3600.0)
        await _End(path, waiting=1, spread=0.5).back_at()
        return path.at

    for _ in range(10):
        at = played(tries())
        assert sum(time < 60 for time in at) <= 40
        later = [time for time in at if time >= 60]
        assert max(sum(first <= time < first + 60 for time in later) for first in later) <= 25
