"""Services deleted and hosts withdrawn on the command line, with real agents and a running stream."""

from __future__ import annotations

import time

import pytest

from tests.guards.promises import promised
from tests.net.harness import _KDISPATCH, Network
from tests.net.tcp import Tcp, echo, service

pytestmark = pytest.mark.slow


async def _talking(port: int) -> Tcp:
    tcp = await Tcp.connect(port)
    await tcp.send(b"one")
    assert await tcp.receive_exactly(3) == b"one"
    return tcp


@pytest.mark.timed
async def test_a_deleted_service_ends_what_rests_on_it_within_two_seconds(network: Network) -> None:
    """The stream is reset, host and client end with `revoked` and 4, and the idle client at its next stream with 3."""
    name = await network.service()
    async with service(echo) as local:
        host = await network.host(name, local.port)
        client, port = await network.connect(name)
        idle, idle_port = await network.connect(name)
        async with await _talking(port) as tcp:
            deleted = network.program("delete", _KDISPATCH, "service", "delete", name, "--yes")
            assert await deleted.ended() == 0
            began = time.monotonic()
            with pytest.raises(ConnectionResetError):
                await tcp.receive()
            assert (await host.ended(), await client.ended()) == (4, 4)
            assert time.monotonic() - began < promised(2)
        assert "[revoked]" in host.err and "[revoked]" in client.err
        assert idle.status is None
        async with await Tcp.connect(idle_port) as late:
            with pytest.raises(ConnectionResetError):
                await late.receive()
        assert await idle.ended() == 3
        assert "[unknown_service]" in idle.err


async def test_a_withdrawn_host_ends_after_its_streams(network: Network) -> None:
    """A withdrawn host leaves the list at once, the other host gets the new streams, and its own stream goes on."""
    name = await network.service()
    async with service(echo) as local:
        host = await network.host(name, local.port, "--drain-time", "20")
        _, port = await network.connect(name)
        async with await _talking(port) as tcp:
            host_id = (await host.says(r"host ([0-9a-f]{32})"))[1]
            withdrawn = network.program("withdraw", _KDISPATCH, "service", "withdraw", host_id)
            assert await withdrawn.ended() == 0
            await network.has_live_hosts(name, 0)
            await tcp.send(b"two")
            assert await tcp.receive_exactly(3) == b"two"
            assert host.status is None
            again = network.program("withdraw", _KDISPATCH, "service", "withdraw", host_id)
            assert (await again.ended(), "[unknown_host]" in again.err) == (3, True)
        assert await host.ended() == 1
        assert "[withdrawn]" in host.err
