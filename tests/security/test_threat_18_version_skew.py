"""Threat 18: version skew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.uplink import Uplink
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Goaway, Hello, Welcome
from tests.net.false_relays import Asked, refuse
from tests.net.tcp import service
from tests.security.site import Agent, Caller, site

_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


async def test_the_subprotocol(folder: Path) -> None:
    """An upgrade to another protocol is refused with `version_unsupported` before a session exists."""
    async with site(folder) as relay, Caller.of(relay) as caller:
        for offered in ({}, {"Sec-WebSocket-Protocol": "kdispatch.9"}, {"Sec-WebSocket-Protocol": "chat, kdispatch.2"}):
            answer = await caller("GET", "/api/v1/tunnel", headers=_UPGRADE | offered)
            assert answer.status == 426
            assert answer.body["code"] == "version_unsupported"


@pytest.mark.parametrize(("versions", "chosen"), [([1], 1), ([1, 2], 1), ([9, 1, 7], 1), ([2], None), ([0], None)])
async def test_the_version_of_a_hello(folder: Path, versions: list[int], chosen: int | None) -> None:
    """Relay and agent use the newest version that both know, and the relay ignores unknown fields and capabilities."""
    async with site(folder) as relay, Agent.of(relay, hello=False) as agent:
        said = json.loads(Hello(versions=versions, secret="11" * 32, capabilities=["from-the-future"]).encode())
        agent.send(frame(frames.HELLO, payload=json.dumps({**said, "novelty": {"a": [1]}}).encode()))
        if chosen is not None:
            welcome = Welcome.parse((await agent.next(frames.WELCOME))[4])
            assert welcome.version == chosen and "from-the-future" not in welcome.capabilities
        else:
            try:
                goaway = Goaway.parse((await agent.next(frames.GOAWAY))[4]).code
            except TimeoutError:
                goaway = "none"
            assert goaway == "version_unsupported"


async def test_an_agent_and_a_newer_relay() -> None:
    """An agent whose version the relay refuses reports that, and does not try again."""
    asked = Asked(refuse("426 Upgrade Required", "version_unsupported"))
    async with service(asked) as running:
        uplink = Uplink(Dialer(RelayUrl.parse(f"http://127.0.0.1:{running.port}")), lambda _: None)
        with pytest.raises(KdispatchError) as caught:
            await uplink.start(5)
        await uplink.stop()
    assert (caught.value.code, len(asked.at)) == ("version_unsupported", 1)
