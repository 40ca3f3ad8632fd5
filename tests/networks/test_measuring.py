"""Doctor's measurements of the path: its own sessions through a middlebox, on the test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kdispatch.doctor.limits import check_speed, measure
from kdispatch.doctor.session import ProbeSession
from kdispatch.doctor.tunnel import Tunnel
from kdispatch.doctor.way import Way
from kdispatch.settings import Settings
from kdispatch_protocol.wire.messages import QUIET
from tests.net.harness import Relay
from tests.networks.middlebox import Middlebox, Rules, middlebox

pytestmark = pytest.mark.slow


def _tunnel(box: Middlebox) -> Tunnel:
    settings = Settings(relay=box.url)
    return Tunnel(Way(settings, settings.relay_url))


def _then(first: Callable[[Any], None], second: Callable[[], None], error: Exception | None) -> None:
    first(error)
    second()


async def test_a_silent_cut_is_found_between_two_silences(shared_relay: Relay) -> None:
    """If a cut is silent, the limit lies between the longest silence survived and the next one tried."""
    async with middlebox(shared_relay.address.port, Rules(idle=1.2, silently=True)) as box:
        found = await measure(_tunnel(box).open_quiet, after=(0.2, 1.8), answer=0.4)
    assert (found.lived, found.silence, found.seen, found.life) == (0.2, 1.8, False, None)


async def test_no_cut_at_all(shared_relay: Relay) -> None:
    """If all sessions survive, doctor reports the longest silence tried."""
    async with middlebox(shared_relay.address.port) as box:
        found = await measure(_tunnel(box).open_quiet, after=(0.1, 0.3))
    assert (found.lived, found.silence, found.life) == (0.3, None, None)


async def test_a_relay_that_knows_no_quiet_sessions(shared_relay: Relay) -> None:
    """With a relay without quiet sessions, doctor tries no silence beyond the relay's own limit."""

    async def older(tunnel: Tunnel) -> ProbeSession:
        session = await tunnel.open_quiet()
        session.welcome.result().capabilities.remove(QUIET)
        return session

    async with middlebox(shared_relay.address.port) as box:
        found = await measure(partial(older, _tunnel(box)), after=(0.1, 60.0))
    assert (found.lived, found.silence) == (0.1, None)


@pytest.mark.parametrize("before", [True, False])
async def test_a_session_that_ends_under_the_flood(
    shared_relay: Relay, monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    """A measurement of speed that is cut short ends and reports that, even before the first PING."""
    monkeypatch.setattr("kdispatch.doctor.limits._FLOOD_ALL", 1 << 20)  # lasts longer than the session
    async with middlebox(shared_relay.address.port, Rules(life=0.3)) as box:
        tunnel = _tunnel(box)
        session = await tunnel.open()
        lost = asyncio.Event()
        monkeypatch.setattr(session, "connection_lost", partial(_then, session.connection_lost, lost.set))
        try:
            if before:
                await session.over
            [finding] = await check_speed(session)
        finally:
            session.close()
            await asyncio.wait_for(lost.wait(), 20)  # part of the flood may wait for a box that is gone
    assert (finding.level, finding.check) == ("warn", "speed")
