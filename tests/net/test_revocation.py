"""Revoked access with running streams: what rests on it ends, nothing else does, and its agents do not try again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kdispatch_protocol.tokens import token_digest
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.repository import Repository
from tests.guards.promises import promised
from tests.net.harness import Network, Process, Relay, sizes
from tests.net.tcp import Service, Tcp, echo, service

pytestmark = pytest.mark.slow

_WITHIN = promised(2.0)  # seconds
_OF_OTHERS = 10  # streams of another token


class _Owner:
    """Ann, at her relay."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def __call__(self, method: str, path: str, **body: object) -> Any:
        headers = {"Authorization": f"Bearer {self._relay.token}"}
        async with (
            aiohttp.ClientSession(self._relay.url) as http,
            http.request(method, f"/api/v1{path}", json=body or None, headers=headers) as response,
        ):
            assert response.status < 300, await response.text()
            return await response.json(content_type=None)

    async def token(self, purpose: str) -> tuple[str, str]:
        """A new token for the service: its id and text."""
        made = await self("POST", "/tokens", name=purpose, service="db", **{"for": purpose})
        return made["id"], made["token"]


async def _streams(port: int, count: int, into: AsyncExitStack) -> list[Tcp]:
    streams = [await into.enter_async_context(await Tcp.connect(port)) for _ in range(count)]
    await asyncio.gather(*(_echoes(tcp) for tcp in streams))
    return streams


async def _echoes(tcp: Tcp) -> None:
    await tcp.send(b"still here?")
    assert await tcp.receive_exactly(11) == b"still here?"


async def _ends(tcp: Tcp) -> float:
    try:
        while await tcp.receive():
            pass
    except ConnectionResetError:
        return time.monotonic()
    raise AssertionError("it finished as if all were well")


class _Scene:
    """One private service, with two hosts and two clients that have their own tokens."""

    def __init__(self, network: Network, owner: _Owner, local: Service, streams: AsyncExitStack) -> None:
        self.network = network
        self.owner = owner
        self.local = local
        self.streams = streams

    async def host(self, token: str) -> Process:
        self.network.environment["KDISPATCH_TOKEN"] = token
        return await self.network.host("ann/db", self.local.port)

    async def client(self, token: str, count: int) -> tuple[Process, list[Tcp]]:
        self.network.environment["KDISPATCH_TOKEN"] = token
        process, port = await self.network.connect("ann/db")
        return process, await _streams(port, count, self.streams)


@asynccontextmanager
async def _scene(relay: Relay, network: Network) -> AsyncIterator[_Scene]:
    owner = _Owner(relay)
    await owner("POST", "/services", name="db", access="token")
    async with service(echo) as local, AsyncExitStack() as streams:
        yield _Scene(network, owner, local, streams)


@pytest.fixture
async def scene(own_relay: Relay, network: Network) -> AsyncIterator[_Scene]:
    async with _scene(own_relay, network) as made:
        yield made


async def _stopped(process: Process) -> None:
    """Whether it has ended for good, with the reason, and reported no further try."""
    assert await process.ended(_WITHIN + 3) == 4
    assert "[revoked]" in process.err, process.err


@pytest.mark.parametrize("count", sizes(10, 100))
async def test_a_clients_token(scene: _Scene, count: int) -> None:
    """All streams of the token are cut within two seconds, and no others, and its agent ends with 4."""
    await scene.host((await scene.owner.token("host"))[1])
    revoked, token = await scene.owner.token("connect")
    agent, streams = await scene.client(token, count)
    other, others = await scene.client((await scene.owner.token("connect"))[1], _OF_OTHERS)
    began = time.monotonic()
    await scene.owner("DELETE", f"/tokens/{revoked}")
    ended = await asyncio.gather(*map(_ends, streams))
    print(f"\n{count} streams of a token that was revoked: cut after {max(ended) - began:.3f} s")
    assert max(ended) - began < _WITHIN
    await _stopped(agent)
    await asyncio.gather(*map(_echoes, others))
    assert other.status is None


@pytest.mark.parametrize("count", sizes(10, 100))
async def test_a_hosts_token(scene: _Scene, count: int) -> None:
    """The host ends with 4 and its streams are cut; the client stays, and the other host serves it."""
    revoked, token = await scene.owner.token("host")
    host = await scene.host(token)
    agent, streams = await scene.client((await scene.owner.token("connect"))[1], count)
    await scene.host((await scene.owner.token("host"))[1])
    began = time.monotonic()
    await scene.owner("DELETE", f"/tokens/{revoked}")
    assert max(await asyncio.gather(*map(_ends, streams))) - began < _WITHIN
    await _stopped(host)
    port = int((await agent.says(r"is reached by 127\.0\.0\.1:(\d+)"))[1])
    await _streams(port, 3, scene.streams)


@pytest.mark.timed
async def test_a_suspended_account(scene: _Scene, own_relay: Relay, tmp_path: Path) -> None:
    """After a suspension by another process, everything of the account ends within two seconds, public or not."""
    await scene.owner("POST", "/services", name="open")
    host = await scene.host((await scene.owner.token("host"))[1])
    agent, streams = await scene.client((await scene.owner.token("connect"))[1], 10)
    scene.network.environment["KDISPATCH_TOKEN"] = own_relay.token
    open_host = await scene.network.host("ann/open", scene.local.port)
    del scene.network.environment["KDISPATCH_TOKEN"]
    _, port = await scene.network.connect("ann/open")
    streams += await _streams(port, 10, scene.streams)
    async with _store(tmp_path) as repository:
        began = time.monotonic()
        assert await repository.accounts.suspend("ann")
    ended = await asyncio.gather(*map(_ends, streams))
    print(f"\nsuspended: cut after {max(ended) - began:.3f} s")
    assert max(ended) - began < _WITHIN
    for process in (host, agent, open_host):
        await _stopped(process)


@pytest.mark.parametrize("count", sizes(5, 100))
async def test_while_the_relay_is_away(scene: _Scene, own_relay: Relay, tmp_path: Path, count: int) -> None:
    """What was revoked during an outage does not return with the relay: both agents end with 4; other streams go on."""
    revoked, token = await scene.owner.token("connect")
    await scene.host((await scene.owner.token("host"))[1])
    agent, streams = await scene.client(token, count)
    _, others = await scene.client((await scene.owner.token("connect"))[1], _OF_OTHERS)
    own_relay.stop(signal.SIGKILL)
    async with _store(tmp_path) as repository:
        ann = await repository.identity(token_digest(own_relay.token))
        assert ann is not None and await repository.tokens.revoke(ann, revoked, source="")
    await own_relay.start()
    await asyncio.gather(*map(_ends, streams))
    await _stopped(agent)
    await asyncio.gather(*map(_echoes, others))


@pytest.mark.timed
async def test_a_token_that_expires(scene: _Scene, tmp_path: Path) -> None:
    """Streams of a token end within two seconds of its expiry, which is not announced."""
    await scene.host((await scene.owner.token("host"))[1])
    ends, token = await scene.owner.token("connect")
    moment = int(time.time()) + 10
    # The API gives a token a minute at least. The relay has not seen this one yet, so it reads what is written here.
    async with _store(tmp_path) as repository, repository.database.write() as connection:
        await connection.exec_driver_sql(f"UPDATE tokens SET expires_at = {moment} WHERE token_id = '{ends}'")
    agent, streams = await scene.client(token, 3)
    await asyncio.gather(*map(_ends, streams))
    assert 0 <= time.time() - moment < _WITHIN
    assert await agent.ended(_WITHIN + 3) == 4


@asynccontextmanager
async def _store(folder: Path) -> AsyncIterator[Repository]:
    """The relay's database, as another process on its machine opens it."""
    database = Database(str(folder / "relay.db"))
    await database.start()
    try:
        yield Repository(database)
    finally:
        await database.close()
