"""The status of an agent on a real session."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kdispatch import status
from kdispatch.client import Client
from kdispatch.host import Host
from kdispatch.network.dialer import Dialer
from kdispatch.status import agent_status
from kdispatch.uplink import Uplink
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.aio.transport import StreamTransport
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import KdispatchError
from tests.aio.twin import SCALED, SERVICE, Program, Running, running_gate, until


class Ends:
    """A host that accepts every stream, and a client."""

    def __init__(self, relay: Running) -> None:
        self.relay = relay
        self.host = Host(Dialer(relay.url), SERVICE, "token", self.take, limits=SCALED)
        self.client = Client(Dialer(relay.url), limits=SCALED)
        self.taken: list[StreamTransport] = []

    def take(self, driver: EndpointDriver, stream: Stream) -> None:
        self.taken.append(driver.accept(stream, Program()))

    async def stream(self) -> StreamTransport:
        transport = self.client.create_connection(SERVICE, Program())
        await self.client.opened(transport)
        return transport


@asynccontextmanager
async def ends() -> AsyncIterator[Ends]:
    async with running_gate() as relay:
        two = Ends(relay)
        await two.host.start(2)
        await two.client.uplink.start(2)
        try:
            yield two
        finally:
            await two.client.stop()
            await two.host.stop()


async def test_streams_with_their_bytes() -> None:
    """Both ends report a stream, with the bytes of each direction and the peer."""
    async with ends() as two:
        transport = await two.stream()
        transport.write(b"x" * 1000)
        await until(lambda: two.taken and two.taken[0].stream.inbound.received == 1000)
        two.taken[0].write(b"y" * 10)
        await until(lambda: transport.stream.inbound.received == 10)
        (mine,) = agent_status(two.client.uplink, [], drains_for=None)["streams"]
        (its,) = agent_status(two.host.uplink, [], drains_for=None)["streams"]
        assert (mine["sent"], mine["received"], its["sent"], its["received"]) == (1000, 10, 10, 1000)
        assert (mine["service"], mine["state"], mine["host"]) == (SERVICE, "open", two.host.id)
        assert (mine["id"], its["host"], its["peer"]) == (its["id"], None, two.client.uplink.process)
        assert mine["detached"] is its["detached"] is None


async def test_connected_and_not() -> None:
    """A session is connecting, connected with its round trip, or reconnecting with the reason and the next try."""
    async with running_gate() as relay:
        uplink = Uplink(Dialer(relay.url), lambda _: None, limits=SCALED)
        assert agent_status(uplink, [], drains_for=None)["state"] == "connecting"
        await uplink.start(2)
        try:
            await until(lambda: uplink.condition.round_trip is not None)
            told = agent_status(uplink, [{"service": SERVICE}], drains_for=2.5)
            assert told["state"] == "connected" and 0 < told["round_trip"] < 1 and told["connected_for"] >= 0
            assert told["services"] == [{"service": SERVICE}] and told["drains_for"] == 2.5
            assert told["last_error"] is told["next_try"] is told["unanswered"] is None
            uplink.driver.abort()
            await until(lambda: uplink.condition.state == "reconnecting" and uplink.condition.next_try)
            told = agent_status(uplink, [], drains_for=None)
            assert told["connected_for"] is None and 0 <= told["next_try"] <= 0.5
            assert told["last_error"]["code"] == "cancelled" and told["last_error"]["ago"] >= 0
            await until(lambda: uplink.condition.state == "connected")
            assert uplink.condition.next_try is None
        finally:
            await uplink.stop()


async def test_moving() -> None:
    """With two sessions the agent is moving; then it is connected by the newer one, whose round trip is measured."""
    async with running_gate() as relay:
        uplink = Uplink(Dialer(relay.url), lambda _: None, limits=dataclasses.replace(SCALED, rotate=0.1))
        condition = uplink.condition
        await uplink.start(2)
        try:
            began = condition.connected_at
            await until(lambda: condition.state == "moving")
            await until(lambda: condition.state == "connected" and condition.connected_at != began)
            await until(lambda: condition.round_trip is not None)
            assert condition.last_error is None
        finally:
            await uplink.stop()


async def test_a_relay_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """While an agent tries for its first session, its status has the reason of the failure."""
    async with running_gate() as relay:
        url = relay.url
    uplink = Uplink(Dialer(url), lambda _: None)
    starting = asyncio.create_task(uplink.start(5))
    await until(lambda: uplink.condition.next_try)
    told = agent_status(uplink, [], drains_for=None)
    assert told["state"] == "connecting" and told["last_error"]["code"] == "relay_unreachable"
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_measured_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for the round trip gets a new measurement; several share one; a lost session ends the wait."""
    async with ends() as two:
        uplink = two.client.uplink
        await until(lambda: uplink.condition.round_trip is not None)
        uplink.condition.round_trip = -1.0
        await asyncio.gather(*(uplink.condition.measure(2) for _ in range(3)))
        assert uplink.condition.round_trip > 0
        uplink.condition.answered(uplink.condition._pings + 1)
        monkeypatch.setattr(uplink.condition, "answered", lambda _: None)  # as if the relay did not answer
        waiting = asyncio.create_task(uplink.condition.measure(5))
        await asyncio.sleep(0.01)
        assert agent_status(uplink, [], drains_for=None)["unanswered"] > 0
        uplink.driver.abort()
        await asyncio.wait_for(waiting, 4)
        assert uplink.condition.unanswered is None


async def test_detached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that waits for a session says so, since when, and how much of its grace is left."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    async with ends() as two:
        await two.stream()
        two.client.driver.abort()
        await until(lambda: two.client.driver.waiting)
        (told,) = agent_status(two.client.uplink, [], drains_for=None)["streams"]
        assert told["state"] == "detached" and told["detached"] >= 0
        grace = two.client.uplink.endpoint.limits.grace
        assert told["detached"] + told["expires_in"] == pytest.approx(grace, abs=0.002)


async def test_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there are more streams than a status lists, it states their number."""
    monkeypatch.setattr(status, "STREAMS", 2)
    async with ends() as two:
        for _ in range(3):
            await two.stream()
        told = agent_status(two.client.uplink, [], drains_for=None)
        assert (told["stream_count"], len(told["streams"])) == (3, 2)


async def test_failed_streams_are_errors() -> None:
    """A client's last error may be a stream's; a program that just leaves causes none."""
    async with ends() as two:
        two.taken.clear()
        transport = await two.stream()
        await until(lambda: two.taken)
        two.taken[0].reset("cancelled", "gone")
        await until(transport.is_closing)
        assert two.client.uplink.condition.last_error is None
        two.relay.store.error = KdispatchError("unknown_service", "No such service.")
        with pytest.raises(KdispatchError):
            await two.client.opened(two.client.create_connection("ann/other", Program()))
        error = agent_status(two.client.uplink, [], drains_for=None)["last_error"]
        assert error["code"] == "unknown_service" and error["text"]
