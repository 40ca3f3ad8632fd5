"""Fifty at once for what exists once, at a relay in its own process: exactly one gets it, and none a 5xx."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer, Open, Reset
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.repository import Repository
from tests.net.harness import Relay
from tests.relay.test_gate import _Agent as Agent

MANY: Final = 50
UNLIMITED: Final = (
    "sign-ups", "bad-tokens", "requests", "failed-opens", "source-sessions", "sessions",
    "public-streams", "source-streams",
)  # fmt: skip


@dataclass
class Race:
    """A relay without rate limits, and its admin."""

    relay: Relay
    http: aiohttp.ClientSession
    names: Any = field(default_factory=lambda: (f"n{number}" for number in itertools.count()))

    @property
    def port(self) -> int:
        return self.relay.address.port

    async def __call__(self, path: str, token: str | None, **body: object) -> tuple[int, dict[str, Any]]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.http.post(f"{self.relay.url}/api/v1{path}", json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def admin(self, **quotas: int) -> tuple[str, str]:
        """A new admin with these quotas; returns its handle and its token."""
        handle = f"h{secrets.token_hex(6)}"
        status, made = await self("/admins", None, handle=handle)
        assert status == 201, made
        database = Database(str(self.relay.folder / "relay.db"))
        await database.start()
        try:
            assert await Repository(database).accounts.set_quotas(handle, quotas)
        finally:
            await database.close()
        return handle, made["token"]

    async def service(self, token: str, access: str = "public") -> str:
        status, made = await self("/services", token, name=next(self.names), access=access)
        assert status == 201, made
        return str(made["service"])

    async def at_once(self, path: str, token: str | None, *bodies: Mapping[str, object]) -> Counter[object]:
        """The answers to all: the status, and the code of a refusal."""
        answers = await asyncio.gather(*(self(path, token, **body) for body in bodies))
        return Counter(body.get("code", status) for status, body in answers)

    async def agents(self, stack: AsyncExitStack, count: int) -> list[Agent]:
        return [await stack.enter_async_context(Agent.of(self, secrets.token_bytes(32))) for _ in range(count)]


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    relay = Relay(tmp_path_factory.mktemp("races"))
    try:
        asyncio.run(relay.start(*(f"--limit-{name}=off" for name in UNLIMITED)))
        yield relay
    finally:
        relay.stop()


@pytest.fixture
async def race(relay: Relay) -> AsyncIterator[Race]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=MANY)) as http:
        yield Race(relay, http)


async def test_at_the_store(race: Race) -> None:
    """One of fifty requests gets a handle, a service's name, an invitation's last use, a quota's last place."""
    assert await race.at_once("/admins", None, *[{"handle": "same"}] * MANY) == {201: 1, "handle_taken": MANY - 1}
    _, token = await race.admin(services=3, tokens=3)
    same = [{"name": "same"}] * MANY
    assert await race.at_once("/services", token, *same) == {201: 1, "service_exists": MANY - 1}
    service = await race.service(token)
    new = [{"name": next(race.names)} for _ in range(MANY)]
    assert await race.at_once("/services", token, *new) == {201: 1, "quota_exceeded": MANY - 1}
    _, invite = await race(f"/services/{service}/invites", token, **{"for": "connect"}, uses=2)
    assert (await race("/invites/accept", invite["code"]))[0] == 201
    assert await race.at_once("/invites/accept", invite["code"], *[{}] * MANY) == {201: 1, "invite_spent": MANY - 1}
    places = [{"name": "x", "for": "connect", "service": "same"}] * MANY
    _, full = await race.admin(tokens=2)  # one of which comes from the sign-up
    await race("/services", full, name="same")
    assert await race.at_once("/tokens", full, *places) == {201: 1, "quota_exceeded": MANY - 1}


async def _answers(agents: list[Agent], yes: int) -> Counter[str]:
    """The first answer that each gets to what it has sent under number 1."""

    async def answer(agent: Agent) -> str:
        async with asyncio.timeout(10):
            while True:
                while not agent.frames:
                    await agent._some_frame()
                type_, _, number, _, payload = agent.frames.pop(0)
                if number == 1 and type_ == frames.RESET:
                    return Reset.parse(payload).code
                if number == 1 and type_ == yes:
                    return "yes"

    return Counter(await asyncio.gather(*map(answer, agents)))


def _offer(agent: Agent, service: str, token: str) -> None:
    offer = Offer(service=service, host=host_id(agent.process, service), digest="00" * 32, token=token)
    agent.send(frame(frames.OFFER, 1, payload=offer.encode()))


def _open(agent: Agent, service: str, token: str) -> None:
    message = Open(service=service, uuid=secrets.token_hex(16), limit=1 << 18, secret="00" * 32, token=token)
    agent.send(frame(frames.OPEN, 1, payload=message.encode()))


@pytest.mark.parametrize("access", ["public", "token"])
async def test_at_the_switch(race: Race, access: str) -> None:
    """One of fifty sessions gets the last place of an owner's live hosts, and one that of its streams."""
    _, token = await race.admin(hosts=2, streams=2)
    service = await race.service(token, access)
    async with AsyncExitStack() as stack:
        first, *hosts = await race.agents(stack, 1 + MANY)
        _offer(first, service, token)
        assert await _answers([first], frames.OFFERED) == {"yes": 1}
        for host in hosts:
            _offer(host, service, token)
        assert await _answers(hosts, frames.OFFERED) == {"yes": 1, "quota_exceeded": MANY - 1}
        one, *clients = await race.agents(stack, 1 + MANY)
        _open(one, service, token)
        assert await _answers([one], frames.TRYING) == {"yes": 1}
        for client in clients:
            _open(client, service, token)
        assert await _answers(clients, frames.TRYING) == {"yes": 1, "quota_exceeded": MANY - 1}
