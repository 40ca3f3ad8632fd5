"""An agent does not overload a relay that cannot serve it: how often it tries, in real time and over days."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest

from kdispatch.backoff import Backoff
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.uplink import Uplink
from tests.net.false_relays import Answer, Asked, close, refuse, upgrade, welcome
from tests.net.harness import Network, Relay, sizes
from tests.net.tcp import service, silent

pytestmark = pytest.mark.slow

_MINUTE: Final = 60.0
_FIRST: Final = 40  # tries of an agent in the first minute
_LATER: Final = 20  # and in any minute that begins later
_REFUSED: Final = 4  # exit status
_WATCHED: Final = 150.0  # seconds
_AGENTS: Final = 10  # of each kind of false relay
_FALSE: Final[dict[str, Answer]] = {"closes": close, "upgrades and closes": upgrade, "welcomes and closes": welcome(0)}


def _tries(at: list[float]) -> tuple[int, int]:
    """The number of tries in the first minute, and in the fullest one that begins after it. Times are from 0."""
    first = sum(time < _MINUTE for time in at)
    most = 0
    for begin in range(first, len(at)):
        while begin + most < len(at) and at[begin + most] < at[begin] + _MINUTE:
            most += 1  # only a fuller minute than all before counts
    return first, most


@pytest.mark.parametrize("spread", [0.5, 2.0, 15.0])
def test_tries_of_days(spread: float) -> None:
    """A hundred agents whose every try fails at once stay within the bounds for an hour."""
    random.seed(5)
    most = (0, 0)
    for _ in range(100):
        backoff, now, at = Backoff(), 0.0, list[float]()
        backoff.spread = spread
        while now < 3600:
            now += backoff.next_wait()
            at.append(now)
        most = max(most[0], _tries(at)[0]), max(most[1], _tries(at)[1])
    print(f"spread {spread} s: at most {most[0]} tries in the first minute, {most[1]} in a later one")
    assert most[0] <= _FIRST
    assert most[1] <= _LATER


@asynccontextmanager
async def _false_relay(answer: Answer) -> AsyncIterator[Asked]:
    """An agent's own false relay: the agent had a session there, and from now on gets ``answer``."""
    asked = Asked(welcome(0.2))
    async with service(asked) as running:
        uplink = Uplink(Dialer(RelayUrl.parse(f"http://127.0.0.1:{running.port}")), lambda _: None)
        await uplink.start(5)
        asked.at.clear()
        asked.answer = answer
        try:
            yield asked
        finally:
            await uplink.stop()


@pytest.mark.parametrize("seconds", sizes(1, _WATCHED))
async def test_tries_at_false_relays(seconds: float) -> None:
    """Agents call a relay that closes each connection, sooner or later, no more often than the bounds allow."""
    async with AsyncExitStack() as ending:
        asked = {
            kind: [await ending.enter_async_context(_false_relay(answer)) for _ in range(_AGENTS)]
            for kind, answer in _FALSE.items()
        }
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        counts = {kind: [_tries([at - began for at in one.at]) for one in all_] for kind, all_ in asked.items()}
    print(f"\ntries of an agent in the first minute, and in a later one, of {seconds} s")
    for kind, of_agents in counts.items():
        print(f"  a relay that {kind}: {sorted(of_agents)}")
        assert all(0 < one <= _FIRST and two <= _LATER for one, two in of_agents)


@pytest.mark.accept
async def test_tries_of_processes(network: Network, own_relay: Relay) -> None:
    """Processes whose relay was replaced by one that closes each connection at once stay within the bounds as well."""
    name = await network.service()
    async with service(silent) as local:
        agents = [await network.host(name, local.port), (await network.connect(name))[0]]
        own_relay.stop(signal.SIGKILL)
        began = asyncio.get_running_loop().time()
        asked = Asked(close)
        async with service(asked, port=own_relay.address.port):
            await asyncio.sleep(_WATCHED)
    first, later = _tries([at - began for at in asked.at])
    print(f"\ntries of a host and a client together in the first minute, and in a later one: {first}, {later}")
    assert 0 < first <= 2 * _FIRST and later <= 2 * _LATER
    assert [agent.status for agent in agents] == [None, None]


async def test_final_answer(network: Network, own_relay: Relay) -> None:
    """A relay that answers 401 with its own code is called once, by agents that were connected and by a new one."""
    name = await network.service()
    async with service(silent) as local:
        host = await network.host(name, local.port)
        client, _ = await network.connect(name)
        own_relay.stop(signal.SIGKILL)
        asked = Asked(refuse("401 Unauthorized", "token_refused"))
        async with service(asked, port=own_relay.address.port):
            for agent in (host, client):
                assert await agent.ended() == _REFUSED
                assert "[token_refused]" in agent.err
            assert len(asked.at) == 2
            late = network.agent("host", "host", name, "--port", str(local.port), "--wait", "5")
            assert await late.ended() == _REFUSED
            assert len(asked.at) == 3
