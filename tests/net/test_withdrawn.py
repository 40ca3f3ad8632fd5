"""A host that its owner withdraws gets no new streams and no new offer, but its running streams go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdispatch.host import Host
from kdispatch.library import Server
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.endpoint import events
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.messages import Reset
from tests.net.harness import eventually
from tests.net.loop_stack import Stack, running_stack
from tests.net.tcp import Tcp, echo, service


def _relay_says(host: Host, code: str) -> None:
    """A relay's answer to the host's offer."""
    [session] = host.driver.sessions
    (number,) = session.session.offers
    reset = frames.frame(frames.RESET, number, payload=Reset(code=code, text="It was withdrawn.").encode())
    session.link_read(frames.decode(reset), 0.0)


async def _talking(port: int) -> Tcp:
    tcp = await Tcp.connect(port)
    await tcp.send(b"one")
    assert await tcp.receive_exactly(3) == b"one"
    return tcp


async def _again(host: Host, stack: Stack) -> None:
    """The host's session is lost and comes back."""
    ready = asyncio.Event()
    before: Callable[[Any], None] = host.uplink._on_event

    def heard(event: events.Event) -> None:
        before(event)
        if isinstance(event, events.SessionReady):
            ready.set()

    host.uplink._on_event = heard
    host.driver.abort()
    await asyncio.wait_for(ready.wait(), 10)


async def test_running_streams_end_first(tmp_path: Path) -> None:
    """``ended`` raises ``withdrawn`` when the last running stream has ended, not before."""
    async with service(echo) as local, running_stack(tmp_path) as stack:
        host = await stack.host(local.port)
        _, port = await stack.client()
        async with await _talking(port) as tcp:
            ended = asyncio.create_task(host.ended(20))
            await asyncio.sleep(0)
            _relay_says(host, "withdrawn")
            await asyncio.sleep(0.1)
            assert not ended.done()
            await tcp.send(b"two")
            assert await tcp.receive_exactly(3) == b"two"
        with pytest.raises(KdispatchError) as caught:
            await asyncio.wait_for(ended, 20)
        assert caught.value.code == "withdrawn"


async def test_drain_time_is_the_most(tmp_path: Path) -> None:
    """Running streams get the drain time and no more."""
    async with service(echo) as local, running_stack(tmp_path) as stack:
        host = await stack.host(local.port)
        _, port = await stack.client()
        async with await _talking(port):
            _relay_says(host, "withdrawn")
            with pytest.raises(KdispatchError) as caught:
                await asyncio.wait_for(host.ended(0.1), 2)
            assert caught.value.code == "withdrawn"
            assert host.driver.streams == 1


@pytest.mark.slow
async def test_no_new_offer(tmp_path: Path) -> None:
    """A withdrawn host is not listed again: not after a reconnect, and not when its local port comes back."""
    async with service(echo) as local, running_stack(tmp_path) as stack:
        host = await stack.host(local.port)
        _relay_says(host, "withdrawn")
        await _again(host, stack)
        host.offer()  # what a local port that is back causes
        await asyncio.sleep(0.2)
        assert not stack.switch.registry.hosts_of(stack.service)


async def test_revoked_ends_at_once(tmp_path: Path) -> None:
    """A host whose service was deleted does not wait for its streams."""
    async with service(echo) as local, running_stack(tmp_path) as stack:
        host = await stack.host(local.port)
        _, port = await stack.client()
        async with await _talking(port):
            _relay_says(host, "revoked")
            with pytest.raises(KdispatchError) as caught:
                await asyncio.wait_for(host.ended(20), 1)
            assert caught.value.code == "revoked"
            assert caught.value.info.exit == 4


@pytest.mark.parametrize("code", ["withdrawn", "revoked"])
async def test_library(tmp_path: Path, code: str) -> None:
    """A program's ``serve_forever`` raises the relay's code."""
    async with running_stack(tmp_path) as stack:
        dialer = Dialer(RelayUrl.parse(stack.url))
        server = Server(dialer, stack.service, stack.token, lambda _reader, _writer: None, 1 << 16)
        await server.start(5)
        async with server:
            forever = asyncio.create_task(server.serve_forever())
            await asyncio.sleep(0)
            _relay_says(server._host, code)
            with pytest.raises(KdispatchError) as caught:
                await asyncio.wait_for(forever, 20)
            assert caught.value.code == code
        await eventually(lambda: len(stack.switch.by_process), 0)
