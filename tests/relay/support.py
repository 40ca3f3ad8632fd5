"""A relay in this process on a real socket, with a fake instead of the switch, and a small client for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect

from kdispatch_relay.server import RunningRelay, running_relay
from kdispatch_relay.settings import LIMITS, RelaySettings
from kdispatch_relay.store.models import Base
from kdispatch_relay.switch.views import ClientView, HostView, Left, LiveHost, LongestQueue, RelayState

STATE = RelayState(
    relay="9a1de3c2f04b4a5c8f2e6d7b1c0a3e58",
    since=1_769_851_800.0,  # 2026-01-31T09:30:00Z
    draining=False,
    sessions=12,
    hosts=4,
    streams={"asking": 0, "waiting": 0, "trying": 1, "open": 40},
    waiting=2,
    queued=1_200_000,
    longest=LongestQueue("4f1c09d2a8b35e6710fd42c98e6ba173", 800_000),
    marks=57,
    cuts={"slow_consumer": 1},
)


@dataclass
class FakeGate:
    """A switch without sessions: the test decides which hosts are live."""

    live: dict[str, list[HostView]] = field(default_factory=dict)
    clients: dict[str, list[ClientView]] = field(default_factory=dict)
    hosts: dict[str, LiveHost] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    relay_id: str = ""

    async def start(self, relay_id: str) -> None:
        self.relay_id = relay_id
        self.calls.append("start")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.calls.append("handle")
        raise ZeroDivisionError(request.query.get("secret", ""))

    def hosts_of(self, service: str, *, after: str = "", limit: int | None = None) -> list[HostView]:
        live = sorted(self.live.get(service, []), key=lambda host: host.host)
        return [host for host in live if host.host > after][:limit]

    def count_hosts(self, service: str) -> int:
        return len(self.live.get(service, []))

    def host(self, host_id: str) -> LiveHost | None:
        return self.hosts.get(host_id)

    def clients_of(
        self, service: str, *, after: tuple[str, str, str] = ("", "", ""), limit: int | None = None
    ) -> list[ClientView]:
        live = sorted(self.clients.get(service, []), key=lambda client: client.place)
        return [client for client in live if client.place > after][:limit]

    def recheck(self, scope: str) -> None:
        self.calls.append(f"recheck {scope}")

    def recheck_all(self) -> None:
        self.calls.append("recheck all")

    def expire(self, now: float) -> None:
        pass

    def withdraw(self, host_id: str) -> None:
        self.calls.append(f"withdraw {host_id}")
        del self.hosts[host_id]

    def state(self) -> RelayState:
        return STATE

    async def drain(self, seconds: float, tell: Callable[[Left], None], arriving: asyncio.Future[None]) -> Left:
        self.calls.append(f"drain {seconds:g}")
        return Left(0, 0, 0)

    async def close(self) -> None:
        self.calls.append("close")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Api:
    """Calls of one relay's REST API."""

    relay: RunningRelay
    gate: FakeGate
    http: aiohttp.ClientSession
    file: Path

    async def __call__(self, method: str, path: str, token: str | None = None, **request: Any) -> Answer:
        headers = dict(request.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self.http.request(method, path, headers=headers, **request) as response:
            body = await response.json(content_type=None)
            return Answer(response.status, response.headers, body)

    async def admin(self, handle: str = "ann") -> str:
        """A new admin's token."""
        answer = await self("POST", "/api/v1/admins", json={"handle": handle})
        assert answer.status == 201, answer.body
        return str(answer.body["token"])

    async def service(self, admin: str, name: str = "web", access: str = "public") -> str:
        """A new service's token."""
        answer = await self("POST", "/api/v1/services", admin, json={"name": name, "access": access})
        assert answer.status == 201, answer.body
        return str(answer.body["token"])


@asynccontextmanager
async def relay_api(file: Path, **settings: Any) -> AsyncIterator[Api]:
    """A relay on a free port with its database in ``file``, with high limits, because a test sends many requests."""
    gate = FakeGate()
    made = RelaySettings(**{"listen": "127.0.0.1:0", "database": str(file), **dict.fromkeys(LIMITS, 0), **settings})
    async with (
        running_relay(made, lambda _authority: gate) as relay,
        aiohttp.ClientSession(relay.url) as http,
    ):
        yield Api(relay, gate, http, file)


def differences(connection: Connection) -> list[object]:
    """What the models say of the tables and the database does not have; of computed columns also how they are kept."""
    found: list[object] = list(compare_metadata(MigrationContext.configure(connection), Base.metadata))
    for table in Base.metadata.sorted_tables:
        for there in inspect(connection).get_columns(table.name):
            computed, kept = table.columns[there["name"]].computed, there.get("computed", {}).get("persisted")
            if computed is not None and computed.persisted not in {None, kept}:
                found.append((table.name, there["name"], computed.persisted, kept))
    return found
