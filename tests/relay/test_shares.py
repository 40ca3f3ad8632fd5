"""What strangers leave of an account's quotas, on real sockets and behind a trusted proxy."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer, Open, Reset
from tests.relay.support import Api
from tests.relay.test_gate import _Agent
from tests.relay.test_limits import Caller, Site, by, site

STREAMS = 16  # 12 of them for public services, and 6 of these for the first source


@pytest.fixture(autouse=True)
def database(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "relay.db")


@asynccontextmanager
async def account(folder: Path) -> AsyncIterator[tuple[Site, str]]:
    """A relay behind a proxy, and the token of ann, who hosts a public and a private service."""
    shares = {"limit_public_streams": 75, "limit_source_streams": 50}
    async with (
        site(folder, trusted_proxy="127.0.0.1", **shares) as relay,
        Caller.of(relay) as caller,
        _Agent.of(relay, b"\x11" * 32, headers=by("192.0.2.1")) as host,
    ):
        ann = await caller.admin()
        await relay.relay.authority.repository.accounts.set_quotas("ann", {"streams": STREAMS})
        for number, (name, access) in enumerate((("open", "public"), ("own", "token"))):
            await caller("POST", "/api/v1/services", ann, json={"name": name, "access": access})
            service = f"ann/{name}"
            offer = Offer(service=service, host=host_id(host.process, service), digest="00" * 32, token=ann)
            host.send(frame(frames.OFFER, 2 * number + 1, payload=offer.encode()))
            await host.next(frames.OFFERED)
        yield relay, ann


async def opened(agent: _Agent, first: int, count: int, service: str = "ann/open", token: str = "") -> list[str]:
    """Codes of this many OPENs, from this number on; "" for those that reach a host."""
    told = []
    for number in range(first, first + 2 * count, 2):
        message = Open(service=service, uuid=f"{agent.process[:24]}{number:08x}", limit=1 << 16, token=token or None)
        agent.send(frame(frames.OPEN, number, payload=message.encode()))
        answer = None
        while answer is None or answer[2] != number:
            await agent._some_frame()
            answer = agent.frames.pop(0)
        told.append(Reset.parse(answer[4]).code if answer[0] == frames.RESET else "")
    return told


async def test_sessions_of_one_source_leave_room(tmp_path: Path) -> None:
    """Sessions of one source, an IPv6 network behind the proxy, share one part; the owner and others get streams."""
    async with account(tmp_path) as (relay, ann), AsyncExitStack() as ending:

        async def agent(secret: int, address: str) -> _Agent:
            return await ending.enter_async_context(_Agent.of(relay, bytes([secret]) * 32, headers=by(address)))

        one, two = await agent(1, "2001:db8:0:1::1"), await agent(2, "198.51.100.9, 2001:db8:0:1:ffff::2")
        assert await opened(one, 1, 4) + await opened(two, 1, 4) == [""] * 6 + ["busy"] * 2
        other = await agent(3, "2001:db8:0:2::1")
        assert await opened(other, 1, 4) == ["", "", "", "busy"]
        assert await opened(two, 9, 1, "ann/own", ann) == [""]
        owner = await agent(4, "192.0.2.1")
        assert await opened(owner, 1, 1, "ann/own", ann) == [""]
        assert relay.limited == {"source_streams": 3}


async def test_what_is_kept_for_the_owner_is_counted(tmp_path: Path) -> None:
    """Refusals by the limit on all public services together are counted among the relay's limits."""
    async with account(tmp_path) as (relay, _), AsyncExitStack() as ending:
        told = []
        for number in range(1, 16):
            came = by(f"192.0.2.{number}")
            agent = await ending.enter_async_context(_Agent.of(relay, bytes([number]) * 32, headers=came))
            told += await opened(agent, 1, 1)
        refused = told.count("quota_exceeded")
        assert refused == 3 and relay.limited == {"public_streams": 3}


async def test_tokens_from_invitations_leave_room(api: Api) -> None:
    """The holder of a code with many uses cannot use up the tokens that the owner may have."""
    ann = await api.admin("ann")
    await api.service(ann)
    assert await api.relay.authority.repository.accounts.set_quotas("ann", {"tokens": 8})
    invite = (await api("POST", "/api/v1/services/ann/web/invites", ann, json={"for": "connect", "uses": 100})).body
    answers = [await api("POST", "/api/v1/invites/accept", invite["code"], json={}) for _ in range(10)]
    assert [answer.status for answer in answers] == [201] * 6 + [429] * 4
    assert answers[-1].body["code"] == "quota_exceeded" and "from invitations" in answers[-1].body["detail"]
    made = await api("POST", "/api/v1/tokens", ann, json={"name": "mine", "for": "admin"})
    assert made.status == 201, made.body
