"""An uplink learns from its sessions what its path cuts, and from nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.status import agent_status
from kdispatch.uplink import Uplink
from tests.aio.twin import SCALED, Running, running_gate, until
from tests.net.way import Way, way

pytestmark = pytest.mark.slow

_LIMITS = dataclasses.replace(SCALED, ping=1.0, ping_least=0.1, rotate_least=60.0)


@asynccontextmanager
async def _uplink() -> AsyncIterator[tuple[Uplink, Way, Running]]:
    async with running_gate() as relay, way(relay.port) as path:
        uplink = Uplink(Dialer(RelayUrl.parse(path.url)), lambda _: None, limits=_LIMITS)
        await uplink.start(2)
        try:
            yield uplink, path, relay
        finally:
            await uplink.stop()


async def _quiet(uplink: Uplink) -> None:
    """A session that is idle for a while."""
    await until(lambda: uplink.condition.state == "connected")
    await asyncio.sleep(0.3)


async def _lost(uplink: Uplink) -> None:
    await until(lambda: uplink.condition.state != "connected")


async def _another_failure(uplink: Uplink) -> None:
    before = uplink.condition.last_error
    await until(lambda: uplink.condition.last_error is not before)


async def test_two_cuts() -> None:
    """Two cuts after the same silence make a limit, which the status shows; one does not."""
    async with _uplink() as (uplink, path, _):
        for known in (False, False, True):
            await _quiet(uplink)
            limit = agent_status(uplink, [], drains_for=None)["idle_limit"]
            assert (limit is not None) is known
            path.cut()
            path.mend()
            await _lost(uplink)
        assert limit is not None and 0.2 <= limit <= 0.6


async def test_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the relay cannot be reached again at once, the cut before does not indicate a limit."""
    monkeypatch.setattr("kdispatch.backoff._MOST", 0.2)
    async with _uplink() as (uplink, path, _):
        for _ in range(3):
            await _quiet(uplink)
            path.cut()
            await _another_failure(uplink)  # the session is lost
            await _another_failure(uplink)  # and the first try fails
            path.mend()
        await _quiet(uplink)
        status = agent_status(uplink, [], drains_for=None)
        assert status["idle_limit"] is status["age_limit"] is None
