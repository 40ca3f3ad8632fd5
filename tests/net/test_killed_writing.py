"""A relay killed during writes keeps what it has acknowledged, and its database is intact."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.net.harness import Relay, sizes

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_AT_ONCE = 8  # requests


@dataclass(frozen=True)
class _Size:
    kills: int
    writes: int  # requests between two kills


@dataclass
class _Written:
    """What the relay has acknowledged; unanswered writes may or may not be there."""

    services: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    invites: dict[str, str] = field(default_factory=dict)  # ids, and the service of each
    answers: int = 0


class _Writer:
    """Sends one write after the other, of any kind, until the relay is gone."""

    def __init__(self, http: aiohttp.ClientSession, token: str, written: _Written, rng: random.Random) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}
        self._written = written
        self._rng = rng

    async def write(self, count: int) -> None:
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._service, self._service, self._delete, self._token, self._token, self._revoke, self._invite,
        ]  # fmt: skip
        try:
            for _ in range(count):
                await self._rng.choice(kinds)()
        except (aiohttp.ClientError, OSError):
            return

    async def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> Any:
        async with self._http.request(method, f"/api/v1{path}", json=body, headers=self._headers) as response:
            answer = await response.json(content_type=None)
            assert response.status in {200, 201, 204}, answer
            self._written.answers += 1
            return answer

    def _name(self) -> str:
        return f"n{self._rng.getrandbits(60):x}"

    async def _service(self) -> None:
        name = self._name()
        await self._ask("POST", "/services", {"name": name})
        self._written.services.add(name)

    async def _delete(self) -> None:
        if self._written.services:
            name = self._written.services.pop()
            await self._ask("DELETE", f"/services/ann/{name}")
            self._written.deleted.add(name)

    async def _token(self) -> None:
        made = await self._ask("POST", "/tokens", {"name": self._name(), "for": "admin"})
        self._written.tokens.add(made["id"])

    async def _revoke(self) -> None:
        if self._written.tokens:
            token = self._written.tokens.pop()
            await self._ask("DELETE", f"/tokens/{token}")
            self._written.revoked.add(token)

    async def _invite(self) -> None:
        if self._written.services:
            name = self._rng.choice(sorted(self._written.services))
            try:
                made = await self._ask("POST", f"/services/ann/{name}/invites", {"for": "connect"})
            except AssertionError:
                if name in self._written.services:
                    raise
                return  # another one has deleted it meanwhile
            self._written.invites[made["id"]] = name


def _check(file: Path, written: _Written) -> None:
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        services = {name for (name,) in connection.execute("SELECT name FROM services")}
        tokens = dict(connection.execute("SELECT token_id, revoked_at FROM tokens").fetchall())
        invites = {invite for (invite,) in connection.execute("SELECT token_id FROM invites")}
        told = {(action, subject) for action, subject in connection.execute("SELECT action, subject FROM audit")}
        own = connection.execute(
            "SELECT count(*) FROM services WHERE id NOT IN (SELECT service_id FROM tokens WHERE own)"
        ).fetchone()
    assert written.services <= services
    assert not written.deleted & services
    assert all(tokens[token] is None for token in written.tokens)
    assert all(tokens[token] is not None for token in written.revoked)
    assert {invite for invite, name in written.invites.items() if name in written.services} <= invites
    assert {("service.create", f"ann/{name}") for name in services} <= told, "a service that the audit does not know"
    assert own == (0,), "a service without its token"


@pytest.mark.parametrize("size", sizes(_Size(2, 100), _Size(50, 1_000)))
async def test_killed_while_it_writes(own_relay: Relay, tmp_path: Path, size: _Size) -> None:
    """After each of several kill -9, every acknowledged write is there, complete, and the next relay goes on."""
    rng = random.Random(9)
    written = _Written()
    free = ("--limit-requests", "off")
    own_relay.stop()
    with closing(sqlite3.connect(tmp_path / "relay.db")) as connection:
        connection.execute("UPDATE admins SET max_services = 1000000, max_tokens = 1000000")
        connection.commit()
    for _ in range(size.kills):
        await own_relay.start(*free)
        before = written.answers
        async with aiohttp.ClientSession(own_relay.url) as http:
            writers = [_Writer(http, own_relay.token, written, rng) for _ in range(_AT_ONCE)]
            work = asyncio.gather(*(writer.write(size.writes // _AT_ONCE) for writer in writers))
            goal = before + rng.randrange(1, size.writes)
            while written.answers < goal and not work.done():  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.001)
            own_relay.stop(signal.SIGKILL)
            await work
        await asyncio.to_thread(_check, tmp_path / "relay.db", written)
    print(f"\n{size.kills} kills, {written.answers} acknowledged writes, all there: {len(written.services)} services")
    assert written.answers > size.kills
