"""The store on PostgreSQL: its tables, the purpose of its locks, and the feed between relays on one database.

What it stores and finds is tested together with SQLite, by the tests marked with ``BOTH_STORES``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import ColumnClause, Connection, insert, table, text, update
from sqlalchemy.sql import column
from typer.testing import CliRunner

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import format_token, token_digest, token_id
from kdispatch_relay.auth import Authority
from kdispatch_relay.cli import app
from kdispatch_relay.store import upgrade
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import AuditRow, Change, Invite, Token
from kdispatch_relay.store.records import AuditRecord, NewToken, TokenIdentity
from kdispatch_relay.store.repository import Repository
from tests.relay.postgres import BOTH_STORES, POSTGRES, Server
from tests.relay.support import Api, differences

_TOKENS = ("digest", "kind", "admin_id", "service_id", "created_at")  # at revision 0002
ON_POSTGRES = pytest.mark.parametrize("location", [pytest.param("postgres", marks=POSTGRES)], indirect=True)


@asynccontextmanager
async def opened(location: str) -> AsyncIterator[Repository]:
    database = Database(location)
    try:
        await database.start()
        yield Repository(database)
    finally:
        await database.close()


def new_token(kind: str = "adm", expires: int | None = None) -> tuple[str, NewToken]:
    made = format_token(kind, secrets.token_bytes(32))
    return made, NewToken(token_digest(made), "laptop", expires)


async def signed_up(store: Repository, handle: str = "ann") -> TokenIdentity:
    made, new = new_token()
    await store.accounts.create(handle, new, source="127.0.0.1")
    return await Authority(store).identify(made)


async def service(store: Repository, owner: TokenIdentity, name: str = "web") -> None:
    _, new = new_token("svc")
    await store.services.create(owner, name, new, access="token", pins=False, source="127.0.0.1")


# --- tables ---------------------------------------------------------------------------------------


@ON_POSTGRES
async def test_migrations_make_the_models(location: str) -> None:
    """The tables of the migrations are those that the models describe, also on PostgreSQL."""
    async with opened(location) as store, store.database.read() as connection:
        assert await connection.run_sync(differences) == []


@pytest.fixture
def empty(request: pytest.FixtureRequest, location: str) -> str:
    """A database of the same kind without tables."""
    if not location.startswith("postgresql"):
        return location.replace("relay.db", "empty.db")
    server: Server = request.getfixturevalue("postgres_server")
    return server.new()


@ON_POSTGRES
async def test_a_server_that_became_read_only(empty: str) -> None:
    """A PostgreSQL that is a standby, or has read-only transactions, keeps no change: the relay is not ready."""
    async with opened(empty) as store:
        await store.database.probe(0.0)
        async with store.database.write() as connection:
            name = (await connection.execute(text("SELECT current_database()"))).scalar_one()
            await connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        await store.database.close()  # the next connections are new ones, as after a failover
        with pytest.raises(KdispatchError, match="storage_unavailable"):
            await store.database.probe(0.0)
        async with store.database.read() as connection:
            await connection.execute(text("SELECT 1"))


@pytest.mark.slow
@BOTH_STORES
async def test_an_older_database_is_brought_up_to_date(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From revision 0002 every row is kept, its tokens are valid and have ids and names, and the relay's id stays."""

    def to_the_second(connection: Connection) -> None:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(upgrade._MIGRATIONS))
        command.upgrade(config, "0002")

    admin, service_token = format_token("adm", b"a" * 32), format_token("svc", b"s" * 32)
    with monkeypatch.context() as patched:
        patched.setattr(upgrade, "_run_migrations", to_the_second)
        async with opened(empty) as store:
            async with store.database.write() as connection:
                await connection.execute(text("INSERT INTO admins VALUES (7, 'ann', 5), (8, 'bob', 6)"))
                await connection.execute(text("INSERT INTO services VALUES (3, 7, 'web', 'token', 9)"))
                columns: list[ColumnClause[Any]] = [column(name) for name in _TOKENS]
                tokens = insert(table("tokens", *columns))
                await connection.execute(tokens.values((token_digest(admin), "adm", 7, None, 5)))
                await connection.execute(tokens.values((token_digest(service_token), "svc", 7, 3, 9)))
            before = await store.relay_id()
    database = Database(empty)
    assert await database.start() == ("0002", "0005")
    await database.close()
    async with opened(empty) as store:
        assert await store.relay_id() == before
        assert [(admin.handle, admin.services, admin.tokens) for admin in await store.accounts.list()] == [
            ("ann", 1, 1),
            ("bob", 0, 0),
        ]
        authority = Authority(store)
        owner = await authority.identify(admin)
        assert (owner.handle, owner.name, owner.id) == ("ann", "sign-up", token_id(token_digest(admin)))
        assert (await authority.may_host("ann/web", service_token)).service.access == "token"
        _, new = new_token("svc")
        await store.services.rotate(owner, "web", new, old_until=None, source="")  # the old one is its own
        with pytest.raises(KdispatchError, match="revoked"):
            await authority.may_host("ann/web", service_token)
        assert [token.name for token in await store.tokens.of(owner)] == ["laptop", "service", "sign-up"]


@ON_POSTGRES
async def test_relays_that_start_at_once(empty: str) -> None:
    """Of several relays that find an empty database exactly one creates the tables, and none fails."""
    databases = [Database(empty) for _ in range(4)]
    told = await asyncio.gather(*(database.start() for database in databases))
    for database in databases:
        await database.close()
    assert sorted(told, key=str) == [("0005", "0005")] * 3 + [(None, "0005")]


# --- many at once ---------------------------------------------------------------------------------


async def done(*works: Awaitable[object]) -> None:
    """Do all of them at once; one that finds nothing to do counts as done."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, KdispatchError) and outcome.code != "storage_unavailable", outcome


async def everything(store: Repository, owner: TokenIdentity, name: str) -> None:
    """All operations on one service, at once."""
    invites, here = [], {"source": "127.0.0.1"}
    for _ in range(2):
        code, new = new_token("inv", int(time.time()) + 60)
        assert await store.invites.create(owner, name, new, purpose="connect", uses=9, **here)
        invite = await store.invites.find(token_digest(code))
        assert invite is not None
        invites.append(invite)
    made = [new_token("cli")[1] for _ in range(2)]
    for new in made:
        await store.tokens.create(owner, new, kind="cli", name=name, **here)
        store.used(TokenIdentity("cli", owner.admin_id, "ann", id=new.id))
    await done(
        *(store.tokens.create(owner, new_token("cli")[1], kind="cli", name=name, **here) for _ in range(4)),
        *(store.invites.accept(invite, new_token("cli")[1], **here) for invite in invites for _ in range(4)),
        *(store.invites.revoke(owner, name, invite.id, tokens=True, **here) for invite in invites),
        *(store.tokens.revoke(owner, new.id, **here) for new in made),
        *(store.services.rotate(owner, name, new_token("svc")[1], old_until=None, **here) for _ in range(3)),
        store.invites.create(owner, name, new_token("inv", 9)[1], purpose="host", uses=1, **here),
        store.services.change(owner, name, {"pins": True}, **here),
        store.accounts.set_quotas("ann", {"hosts": 5}),
        store.write_used(),
        store.forget_ended(),
    )
    await done(
        *(store.tokens.create(owner, new_token("cli")[1], kind="cli", name=name, **here) for _ in range(2)),
        store.services.rotate(owner, name, new_token("svc")[1], old_until=None, **here),
        store.services.delete(owner, name, **here),
        store.write_used(),
    )


@pytest.mark.slow
@BOTH_STORES
async def test_nobody_waits_in_a_circle(location: str) -> None:
    """Whatever two relays do to one account at the same moment, there is no deadlock."""
    async with opened(location) as store, opened(location) as other:
        owner = await signed_up(store)
        for number in range(6):
            await service(store, owner, f"s{number}")
        for number in range(0, 6, 2):
            await asyncio.gather(
                everything(store, owner, f"s{number}"),
                everything(other, owner, f"s{number + 1}"),
            )


@pytest.mark.slow
@BOTH_STORES
async def test_no_change_is_missed(location: str) -> None:
    """A reader of the changes sees each exactly once, while many are written at once in long and short transactions."""
    async with opened(location) as store, opened(location) as other:
        seen: list[str] = []

        async def follow() -> None:
            last = 0
            while len(seen) < 60:
                for number, scope in await other.changes.since(last):
                    last = number
                    seen.append(scope)
                await asyncio.sleep(0)

        async def write(number: int) -> None:
            async with (store, other)[number % 2].changes.taking(f"s{number}"):
                await asyncio.sleep((number % 7) / 500)

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(follow())
            for number in range(60):
                group.create_task(write(number))
        assert sorted(seen) == sorted(f"s{number}" for number in range(60))
        assert await store.changes.newest() == 60


# --- what a relay does on its own -----------------------------------------------------------------


@BOTH_STORES
async def test_what_is_noted_and_dropped(location: str) -> None:
    """Notes and last uses are written, and old events, changes, tokens and invitations are dropped."""
    async with opened(location) as store:
        owner = await signed_up(store)
        await service(store, owner)
        now = int(time.time())
        for handle, at in (("ann", now), ("ann", now - 100), ("nobody", now)):
            store.audit.note(
                handle, AuditRecord(actor="anybody", action="open", subject="ann/web", source="::1", at=at)
            )
        await store.audit.write_notes()
        await store.write_used()
        events = await store.audit.read("ann", service="ann/web")
        assert [event.action for event in events] == ["open", "open", "service.create"]
        assert [token.last_used for token in await store.tokens.of(owner) if token.id == owner.id] != [None]
        await store.audit.forget_before(now - 50)
        assert len(await store.audit.read("ann", service="ann/web")) == 2
        _, code = new_token("inv", now + 60)
        await store.invites.create_code(code, uses=1)
        await store.services.change(owner, "web", {"pins": True}, source="")
        async with store.database.write() as connection:
            await connection.execute(update(Change).values(at=5))
            await connection.execute(update(Invite).values(expires_at=5))
            await connection.execute(update(Token).where(Token.kind == "svc").values(revoked_at=5))
        await store.changes.forget_old()
        await store.forget_ended()
        assert (await store.changes.newest(), await store.invites.codes()) == (0, [])
        assert [token.kind for token in await store.tokens.of(owner)] == ["adm"]


@BOTH_STORES
async def test_ids_outgrow_32_bits(location: str) -> None:
    """A relay that has written more events and changes than 32 bits can count still works."""
    async with opened(location) as store:
        owner = await signed_up(store)
        async with store.database.write() as connection:
            await connection.execute(update(AuditRow).values(id=1 << 40))
            await connection.execute(insert(Change).values(id=1 << 40, scope="ann"))
        assert [event.id for event in await store.audit.read(owner.handle, before=(1 << 63) - 1)] == [1 << 40]
        assert await store.changes.since((1 << 40) - 1) == [(1 << 40, "ann")]


@BOTH_STORES
@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/api/v1/audit?before=9223372036854775807", None),
        ("DELETE", "/api/v1/tokens/%00", "unknown_token"),
        ("DELETE", "/api/v1/services/ann/web/invites/%00", "unknown_invite"),
    ],
)
async def test_what_a_database_might_not_take(api: Api, method: str, path: str, code: str | None) -> None:
    """Numbers and texts that PostgreSQL cannot store are answered like missing ones."""
    admin = await api.admin()
    await api.service(admin)
    assert (await api(method, path, admin)).body.get("code") == code


@ON_POSTGRES
async def test_the_operators_commands(location: str) -> None:
    """``relay admin`` works on a server, and reports a missing database there in one error."""
    runner = CliRunner()

    def run(*words: str, database: str = location) -> tuple[int, str, str]:
        ended = runner.invoke(app, ["admin", *words, "--database", database, "--json"], catch_exceptions=False)
        return ended.exit_code, ended.stdout, ended.stderr

    async with opened(location) as store:
        await signed_up(store)
    commands: list[tuple[str, ...]] = [
        ("suspend", "ann", "--reason", "spam"),
        ("resume", "ann"),
        ("quota", "ann", "--services", "999999999"),
        ("code", "create"),
        ("list",),
        ("code", "list"),
        ("audit",),
    ]
    told = {words: await asyncio.to_thread(run, *words) for words in commands}
    assert {words: status for words, (status, _, _) in told.items() if status} == {}
    assert json.loads(told["list",][1])["admins"][0]["quotas"]["services"] == 999_999_999
    assert len(json.loads(told["audit",][1])["events"]) == 5
    status, _, err = await asyncio.to_thread(run, "list", database=f"{location}-absent")
    assert (status, json.loads(err)["error"]["code"]) == (1, "storage_unavailable")
