"""The gate when a service is deleted or a host withdrawn during sessions and look-ups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Reset
from kdispatch_relay.auth import Grant, ServiceRecord
from tests.aio.twin import SERVICE, Running, running_gate, until
from tests.relay.test_gate import _Agent, _carried

_GRANT = Grant(ServiceRecord(SERVICE, "public"))


@pytest.fixture
async def relay() -> AsyncIterator[Running]:
    async with running_gate() as running:
        yield running


async def _reset_code(agent: _Agent) -> tuple[int, str]:
    _, _, number, _, payload = await agent.next(frames.RESET)
    return number, Reset.parse(payload).code


class _Store:
    """Answers when the test lets it, with what was true when it was asked."""

    def __init__(self) -> None:
        self.there = True
        self.asked = 0
        self.go = asyncio.Event()

    def forget(self, scope: str) -> None:
        pass

    async def may_host(self, _service: str, _token: str) -> Grant:
        return await self._answer()

    async def may_open(self, _service: str, _token: str | None) -> Grant:
        return await self._answer()

    async def _answer(self) -> Grant:
        there = self.there
        self.asked += 1
        await self.go.wait()
        if not there:
            raise KdispatchError("unknown_service")
        return _GRANT


def _slow(relay: Running, monkeypatch: pytest.MonkeyPatch) -> _Store:
    store = _Store()
    monkeypatch.setattr(relay.gate._access, "_authority", store)
    return store


async def test_deleted_service(relay: Running) -> None:
    """Both ends of a running stream, and the offer, are told of a deletion at once."""
    async with _Agent.of(relay, b"\x11" * 32) as client, _Agent.of(relay, b"\x22" * 32) as host:
        number = await _carried(client, host)
        relay.store.error = KdispatchError("unknown_service")
        relay.gate.recheck(SERVICE)
        assert await _reset_code(client) == (3, "revoked")
        assert {await _reset_code(host), await _reset_code(host)} == {(1, "revoked"), (number, "revoked")}
        assert not relay.gate.hosts_of(SERVICE)


async def test_withdrawn_host(relay: Running) -> None:
    """A withdrawn host leaves the list, its agent is told, its stream goes on; a new session does not list it again."""
    async with _Agent.of(relay, b"\x11" * 32) as client, _Agent.of(relay, b"\x22" * 32) as host:
        number = await _carried(client, host)
        [seen] = relay.gate.hosts_of(SERVICE)
        assert relay.gate.host(seen.host) is not None
        relay.gate.withdraw(seen.host)
        assert not relay.gate.hosts_of(SERVICE) and relay.gate.host(seen.host) is None
        assert await _reset_code(host) == (1, "withdrawn")
        client.send(frame(frames.DATA, 3, 0, b"still here"))
        data = await host.next(frames.DATA)
        assert (data[2], bytes(data[4])) == (number, b"still here")
        relay.gate.withdraw(seen.host)  # it is not there any more: nothing happens
        async with _Agent.of(relay, b"\x22" * 32) as again:
            answer = await again.offer()
            assert Reset.parse(answer[4]).code == "withdrawn"


async def test_offer_whose_look_up_was_before_the_deletion(relay: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OFFER that the store allowed before the deletion is refused if the answer comes after it."""
    store = _slow(relay, monkeypatch)
    async with _Agent.of(relay) as host:
        offered = asyncio.create_task(host.offer())
        await until(lambda: store.asked)
        store.there = False
        relay.gate.recheck(SERVICE)
        store.go.set()
        answer = await offered
        assert answer[0] == frames.RESET and Reset.parse(answer[4]).code == "unknown_service"
        assert store.asked == 2
        assert relay.gate.switch.registry.get(SERVICE) is None


async def test_open_whose_look_up_was_before_the_deletion(relay: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OPEN that is looked up during the deletion is refused, and the late answer makes nothing public again."""
    store = _slow(relay, monkeypatch)
    async with _Agent.of(relay) as client:
        client.open(3)
        await until(lambda: store.asked)
        store.there = False
        relay.gate.recheck(SERVICE)
        store.go.set()
        assert await _reset_code(client) == (3, "unknown_service")
        await until(lambda: not relay.gate._access._work)
        assert relay.gate.switch.registry.get(SERVICE) is None
        client.open(5)
        assert await _reset_code(client) == (5, "unknown_service")
