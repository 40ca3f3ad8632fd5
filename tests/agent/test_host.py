"""A host's offer: what ends it, and what does not."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from kdispatch.host import Host
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import KdispatchError
from tests.aio.twin import SCALED, SERVICE, Running, running_gate, until


def _refuse(driver: EndpointDriver, stream: Stream) -> None:
    driver.refuse(stream, "host_refused", "")


def _host(relay: Running) -> Host:
    return Host(Dialer(relay.url), SERVICE, "token", _refuse, limits=SCALED)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits before a reconnect and before a new offer are random parts; here they are minimal."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low / 50)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    "trouble", [KdispatchError("storage_unavailable"), ZeroDivisionError()], ids=["storage_unavailable", "internal"]
)
async def test_relay_in_trouble(trouble: Exception) -> None:
    """A listed host offers again if a later session's offer is refused because of the relay's own trouble."""
    async with running_gate() as relay:
        host = _host(relay)
        await host.start(2)
        try:
            relay.store.error = trouble
            asked = relay.store.asked
            host.driver.abort()
            await until(lambda: relay.store.asked >= asked + 3)
            assert not relay.gate.hosts_of(SERVICE)
            relay.store.error = None
            await until(lambda: relay.gate.hosts_of(SERVICE))
            assert [view.host for view in relay.gate.hosts_of(SERVICE)] == [host.id]
        finally:
            await host.stop()


@pytest.mark.usefixtures("short_waits")
async def test_withdrawn_meanwhile() -> None:
    """A host that was withdrawn while the relay was in trouble does not offer again."""
    async with running_gate() as relay:
        host = _host(relay)
        await host.start(2)
        try:
            relay.store.error = KdispatchError("storage_unavailable")
            host.driver.abort()
            await until(lambda: SERVICE not in host.uplink.endpoint._offers)  # the refusal was received
            host.withdraw()
            relay.store.error = None
            asked = relay.store.asked
            await asyncio.sleep(0.06)  # three times the wait before a new offer
            assert not relay.gate.hosts_of(SERVICE) and relay.store.asked == asked
        finally:
            await host.stop()


@pytest.mark.usefixtures("short_waits")
async def test_refused_later() -> None:
    """A final refusal by the relay ends a host that was listed before."""
    async with running_gate() as relay:
        host = _host(relay)
        await host.start(2)
        try:
            relay.store.error = KdispatchError("token_refused")
            host.driver.abort()
            with pytest.raises(KdispatchError) as caught:
                await host.failed()
            assert caught.value.code == "token_refused"
        finally:
            await host.stop()


@pytest.mark.usefixtures("short_waits")
async def test_a_refusal_by_another_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that leads to another relay does not end a host, even if that relay answers before the task goes on."""
    met: list[str] = []
    wait = asyncio.wait

    async def late(*arguments: Any, **options: Any) -> Any:
        """Resume as late as in a process that waits for its processor."""
        done = await wait(*arguments, **options)
        await asyncio.sleep(0.02)
        return done

    def meet(_: RelayUrl, relay_id: str) -> None:
        met.append(relay_id)
        if len(met) == 1:
            raise KdispatchError("other_relay")
        relay.store.error = None

    async with running_gate() as relay:
        host = _host(relay)
        await host.start(2)
        try:
            relay.store.error = KdispatchError("token_refused")
            monkeypatch.setattr(host.uplink.dialer, "met", meet)
            monkeypatch.setattr(asyncio, "wait", late)
            host.driver.abort()
            await until(lambda: host._refused.done() or (len(met) == 2 and relay.gate.hosts_of(SERVICE)))
            assert not host._refused.done()
        finally:
            monkeypatch.undo()
            await host.stop()


@pytest.mark.parametrize("code", ["token_refused", "storage_unavailable"])
async def test_first_refusal(code: str) -> None:
    """The refusal of the first offer is always raised, because the caller waits for the answer."""
    async with running_gate() as relay:
        relay.store.error = KdispatchError(code)
        with pytest.raises(KdispatchError) as caught:
            await _host(relay).start(2)
        assert caught.value.code == code
        await until(lambda: not relay.gate.switch.by_process)  # and no session is left


async def test_unknown_code() -> None:
    """A refusal with a code of a later version is an error like any other, with that code in its text."""
    async with running_gate() as relay:
        relay.store.error = KdispatchError("moon_phase", "The moon is wrong.")
        with pytest.raises(KdispatchError) as caught:
            await _host(relay).start(2)
        assert caught.value.text == "The moon is wrong. [moon_phase]"
        assert caught.value.info.hint and str(caught.value)


async def test_unexpected_failure_at_first() -> None:
    """A defect at the relay counts as an answer, too."""
    async with running_gate() as relay:
        relay.store.error = ZeroDivisionError()
        with pytest.raises(KdispatchError) as caught:
            await _host(relay).start(2)
        assert caught.value.code == "internal_error"
