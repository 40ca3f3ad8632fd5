"""Threat 17: a stampede after a restart, and a storm after a permanent refusal."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from kdispatch.backoff import Backoff
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.uplink import Uplink
from kdispatch_protocol.errors import KdispatchError
from tests.net.false_relays import Asked, close, refuse, welcome
from tests.net.harness import sizes
from tests.net.tcp import service


def test_a_thousand_come_back_spread_out() -> None:
    """If a thousand agents lose their relay at once, no tenth of a second sees more than 60 tries, in any round."""
    agents = [Backoff() for _ in range(1000)]
    for agent in agents:
        agent.spread = 5.0  # the value that a relay with that many agents sends
    at = [0.0] * len(agents)
    for number in range(4):
        at = [before + agent.next_wait() for before, agent in zip(at, agents, strict=True)]
        busiest = max(Counter(int(moment * 10) for moment in at).values())
        assert busiest <= 60, f"try {number + 1}: {busiest} in a tenth of a second"
        assert max(at) - min(at) > 4


@pytest.mark.slow
@pytest.mark.parametrize("seconds", sizes(2, 70))
async def test_a_relay_that_closes(seconds: float) -> None:
    """An agent that had a session tries a relay that accepts and then closes only a few times a minute."""
    asked = Asked(welcome(0.05))
    async with service(asked) as running:
        uplink = Uplink(Dialer(RelayUrl.parse(f"http://127.0.0.1:{running.port}")), lambda _: None)
        await uplink.start(5)
        asked.at.clear()
        asked.answer = close
        await asyncio.sleep(seconds)
        await uplink.stop()
    assert 0 < len(asked.at) <= 6 + seconds / 4, f"{len(asked.at)} tries in {seconds} s"


@pytest.mark.parametrize("code", ["token_refused", "revoked", "version_unsupported", "not_permitted"])
async def test_a_final_answer_stops(code: str) -> None:
    """After a final refusal an agent stops: it does not try again."""
    asked = Asked(welcome(0.05))
    async with service(asked) as running:
        uplink = Uplink(Dialer(RelayUrl.parse(f"http://127.0.0.1:{running.port}")), lambda _: None)
        await uplink.start(5)
        asked.at.clear()
        asked.answer = refuse("401 Unauthorized", code)
        ended = None
        try:
            async with asyncio.timeout(20):
                await uplink.failed()
        except KdispatchError as error:
            ended = error.code
        except TimeoutError:
            pass
        await uplink.stop()
        assert ended == code, f"after {len(asked.at)} tries it goes on"
        assert len(asked.at) == 1
