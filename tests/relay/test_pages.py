"""Lists in pages: their order, their cursors, what they cost, and how many ended entries are kept."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import delete, event, func, insert, select, text

from kdispatch_relay.feed import Feed
from kdispatch_relay.store import changes, invites, services, tidying
from kdispatch_relay.store.models import Change, Invite, Service, Token
from kdispatch_relay.store.repository import Repository
from kdispatch_relay.switch.views import ClientView, HostView
from tests.net.harness import sizes
from tests.relay.postgres import BOTH_STORES
from tests.relay.support import Api

WEB: Final = "/api/v1/services/ann/web"
#: Path and member of each list.
LISTS: Final[Mapping[str, str]] = {
    "services": "/api/v1/services",
    "tokens": "/api/v1/tokens",
    "tokens of a service": "/api/v1/tokens?service=web",
    "invites": f"{WEB}/invites",
    "hosts": f"{WEB}/hosts",
    "clients": f"{WEB}/clients",
}
DAY: Final = 24 * 3600


@pytest.fixture
async def ann(api: Api) -> str:
    admin = await api.admin()
    await api.service(admin)
    return admin


def store_of(api: Api) -> Repository:
    return api.relay.authority.repository


async def add(api: Api, table: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    async with store_of(api).database.write() as connection:
        await connection.execute(insert(table), list(rows))


async def ids(api: Api) -> tuple[int, int]:
    """The rows of the account and of its service ``web``."""
    async with store_of(api).database.read() as connection:
        query = select(Service.owner_id, Service.id).where(Service.name == "web")
        row = (await connection.execute(query)).one()
    return row[0], row[1]


async def tokens(api: Api, count: int, *, first: int = 0, **values: Any) -> None:
    """Add connect tokens of the service; ``first`` distinguishes those of several calls."""
    admin, service = await ids(api)
    common = {"kind": "cli", "name": "x", "admin_id": admin, "service_id": service, "created_at": 1000, **values}
    numbers = range(first, first + count)
    await add(api, Token, ({"digest": n.to_bytes(32, "big"), "token_id": f"{n:016x}", **common} for n in numbers))


async def invitations(api: Api, count: int, *, first: int = 0, **values: Any) -> None:
    _, service = await ids(api)
    common = {"purpose": "connect", "name": "x", "service_id": service, "uses": 1, "used": 0, "created_at": 1000}
    common |= {"expires_at": int(time.time()) + DAY, **values}
    numbers = range(first, first + count)
    await add(api, Invite, ({"digest": n.to_bytes(32, "big"), "token_id": f"{n:016x}", **common} for n in numbers))


async def fill(api: Api, what: str, count: int, *, first: int = 0) -> None:
    """Add entries of one list, most of which differ only in their ids."""
    match what:
        case "services":
            admin, _ = await ids(api)
            await add(api, Service, ({"owner_id": admin, "name": f"s{n}"} for n in range(first, first + count)))
        case "tokens" | "tokens of a service":
            await tokens(api, count, first=first, created_at=1000 + first)
        case "invites":
            await invitations(api, count, first=first, created_at=1000 + first)
        case "hosts":
            live = api.gate.live.setdefault("ann/web", [])
            live += [HostView(f"{n:032x}", 1000.0, {}, 0) for n in range(first, first + count)]
        case "clients":
            connected = api.gate.clients.setdefault("ann/web", [])
            connected += [ClientView("a" * 32, f"2001:db8::{n:x}", 5.0, 1, None) for n in range(first, first + count)]


async def remove(api: Api, what: str, *names: str) -> None:
    """Remove entries by their ids or names."""
    match what:
        case "hosts":
            api.gate.live["ann/web"] = [host for host in api.gate.live["ann/web"] if host.host not in names]
        case "clients":
            api.gate.clients["ann/web"] = [one for one in api.gate.clients["ann/web"] if one.source not in names]
        case _:
            column = {"services": Service.name, "invites": Invite.token_id}.get(what, Token.token_id)
            called = [name.rpartition("/")[2] for name in names]
            async with store_of(api).database.write() as connection:
                await connection.execute(delete(column.class_).where(column.in_(called)))


def entries(what: str, body: Mapping[str, Any]) -> list[str]:
    """The ids or names of a page's entries."""
    listed = body[what.partition(" ")[0]]
    return [one.get("id") or one.get("host") or one.get("service") or one["source"] for one in listed]


async def pages(api: Api, token: str, path: str, limit: int | None) -> AsyncIterator[Mapping[str, Any]]:
    glue, size = "&" if "?" in path else "?", "" if limit is None else f"limit={limit}"
    answer = await api("GET", f"{path}{glue}{size}" if size else path, token)
    while True:
        assert answer.status == 200, answer.body
        yield answer.body
        if "next" not in answer.body:
            return
        answer = await api("GET", f"{path}{glue}{size}&cursor={answer.body['next']}", token)


@BOTH_STORES
@pytest.mark.parametrize("what", LISTS)
async def test_every_entry_once(api: Api, ann: str, what: str) -> None:
    """Over all pages, each entry that stays is listed exactly once and in one order, while others come and go."""
    await fill(api, what, 60)
    whole = [name async for body in pages(api, ann, LISTS[what], 200) for name in entries(what, body)]
    assert len(whole) == len(set(whole)) >= 60
    seen: list[str] = []
    async for body in pages(api, ann, LISTS[what], 7):
        page = entries(what, body)
        assert 1 <= len(page) <= 7
        seen += page
        if len(seen) == 14:
            await remove(api, what, whole[13], whole[20])
            await fill(api, what, 5, first=1000)
    assert [name for name in seen if name in whole] == [name for name in whole if name != whole[20]]
    assert len(seen) == len(set(seen)) <= len(whole) + 4


@pytest.mark.parametrize("what", LISTS)
async def test_who_asks_for_nothing_gets_a_page(api: Api, ann: str, what: str) -> None:
    """Without parameters an answer is bounded and says how to continue; a page larger than the maximum is refused."""
    default, most = (50, 200) if what == "hosts" else (100, 1000)
    await fill(api, what, most + 1)
    first = (await api("GET", LISTS[what], ann)).body
    assert len(entries(what, first)) == default and first["next"]
    sizes = [len(entries(what, body)) async for body in pages(api, ann, LISTS[what], most)]
    assert len(sizes) == 2 and sizes[0] == most
    glue = "&" if "?" in LISTS[what] else "?"
    for limit in ("0", "-1", "x", "", "1.0", str(most + 1), "1" * 30):
        answer = await api("GET", f"{LISTS[what]}{glue}limit={limit}", ann)
        assert (answer.status, answer.body["code"]) == (422, "bad_request") and "limit" in answer.body["detail"]


@pytest.mark.parametrize("what", LISTS)
@pytest.mark.parametrize("cursor", ["", "~", "%00", "A", "-1-0123456789abcdef", "9" * 60 + "-" + "0" * 16, "x" * 4000])
async def test_a_bad_cursor(api: Api, ann: str, what: str, cursor: str) -> None:
    """A cursor that no page of the list has returned is refused, in words that say what to do."""
    glue = "&" if "?" in LISTS[what] else "?"
    answer = await api("GET", f"{LISTS[what]}{glue}cursor={cursor}", ann)
    assert (answer.status, answer.body["code"]) == (422, "bad_request")
    assert "cursor" in answer.body["detail"] and "leave it out" in answer.body["detail"]


async def test_pages_of_the_largest_hosts(api: Api, ann: str) -> None:
    """However large the labels, a page stays below what agents read: 1 MiB without parameters, otherwise 4 MiB."""
    labels = {f"{n:064}": '"' * 256 for n in range(16)}
    api.gate.live["ann/web"] = [HostView(f"{n:032x}", 1000.0, labels, 0) for n in range(300)]
    for query, most in (("", 1 << 20), ("?limit=200", 4 << 20)):
        assert len(json.dumps((await api("GET", f"{WEB}/hosts{query}", ann)).body)) < 0.9 * most


# --- what a page costs ----------------------------------------------------------------------------


@asynccontextmanager
async def explained(api: Api) -> AsyncIterator[list[str]]:
    """How SQLite executes the queries in the block."""
    database = store_of(api).database
    asked: list[tuple[str, Any]] = []
    plans: list[str] = []

    def heard(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(database._readers.sync_engine, "before_cursor_execute", heard)
    yield plans
    event.remove(database._readers.sync_engine, "before_cursor_execute", heard)
    async with database.read() as connection:
        for statement, parameters in asked:
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans += [str(row.detail) for row in rows]


@pytest.mark.parametrize("what", ["services", "tokens", "tokens of a service", "invites"])
async def test_a_page_is_read_by_an_index(api: Api, ann: str, what: str) -> None:
    """Neither the first page nor a later one sorts rows or scans a table."""
    await fill(api, what, 300)
    async with explained(api) as plans:
        async for _ in pages(api, ann, LISTS[what], 100):
            pass
    assert len(plans) >= 4
    assert [
        plan for plan in plans if (plan.startswith("SCAN ") and "CONSTANT ROW" not in plan) or "TEMP B-TREE" in plan
    ] == []


async def lag(stop: asyncio.Event) -> float:
    """The longest uninterrupted work of the event loop, in seconds of its thread's processor time."""
    longest = 0.0
    while not stop.is_set():
        before = time.thread_time()
        await asyncio.sleep(0.001)
        longest = max(longest, time.thread_time() - before)
    return longest


@pytest.mark.slow
@pytest.mark.parametrize("ended", sizes(20_000, 180_000))
async def test_an_account_with_many_ended_tokens(api: Api, ann: str, ended: int) -> None:
    """With many ended rows of an older relay, a page costs as little as with few, and the cleanup is in small steps."""
    now = int(time.time())
    await tokens(api, ended, created_at=now - 100, revoked_at=now - 50)
    stop = asyncio.Event()
    lagging = asyncio.create_task(lag(stop))
    began = time.perf_counter()
    for path in ("/api/v1/tokens", "/api/v1/tokens?limit=1000", "/api/v1/tokens?service=web&limit=1000"):
        answer = await api("GET", path, ann)
        assert len(answer.body["tokens"]) in {100, 1000} and answer.body["next"]
    reading = time.perf_counter() - began
    deleting = asyncio.create_task(api("DELETE", WEB, ann))
    waits: list[float] = []
    while not deleting.done():
        began = time.perf_counter()
        assert (await api("POST", "/api/v1/services", ann, json={"name": f"w{len(waits)}"})).status in {201, 429}
        waits.append(time.perf_counter() - began)
    assert deleting.result().status == 204
    assert len(waits) > ended / 9000  # each step lets a few of the waiting requests in
    stop.set()
    lagged = await lagging
    assert await count(api, Token.kind == "cli") == 0
    if ended == 180_000:
        # All pages at once took 9 s.
        assert (reading < 2.0, max(waits) < 1.0, lagged < 0.5) == (True, True, True), (reading, max(waits), lagged)


# --- what is kept ---------------------------------------------------------------------------------


async def count(api: Api, *which: Any) -> int:
    async with store_of(api).database.read() as connection:
        found: int = (await connection.execute(select(func.count()).where(*which))).scalar_one()
    return found


@BOTH_STORES
async def test_ended_tokens_that_are_kept(api: Api, ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account keeps a number of the tokens that ended last, whatever creates new ones; valid ones all stay."""
    monkeypatch.setattr(services, "ENDED_TOKENS", 30)
    now = int(time.time())
    await tokens(api, 40, first=100, revoked_at=now - 40)
    await tokens(api, 20, first=200, expires_at=now - 20)
    await tokens(api, 10, first=300, expires_at=now + DAY)
    await tokens(api, 10, first=400)
    made = (await api("POST", f"{WEB}/invites", ann, json={"for": "connect", "uses": 100})).body["code"]
    for method, path, shown, body in (
        ("POST", f"{WEB}/rotate", ann, {}),
        ("POST", "/api/v1/tokens", ann, {"name": "x", "for": "admin"}),
        ("POST", "/api/v1/invites/accept", made, {}),
    ):
        await tokens(api, 20, first=int(time.perf_counter_ns()), revoked_at=now - 60)
        assert (await api(method, path, shown, json=body)).status in {200, 201}
        kept = await count(api, Token.ended_at <= int(time.time()))
        assert kept in {30, 31}, path  # the rotation's own has just ended
    assert await count(api, Token.expires_at == now - 20) == 20  # the last to end
    assert await count(api, Token.created_at == 1000, Token.ended_at.is_(None)) == 10
    assert await count(api, Token.ended_at == now + DAY) == 10
    assert await count(api, Token.revoked_at == now - 60) == 0


@BOTH_STORES
async def test_rotations_that_overlap(api: Api, ann: str) -> None:
    """The number of a service's valid own tokens is limited; above it, only a rotation that ends them is accepted."""
    path = f"{WEB}/rotate"
    for _ in range(services.OWN_TOKENS - 1):
        assert (await api("POST", path, ann, json={"overlap": DAY})).status == 200
    answer = await api("POST", path, ann, json={"overlap": DAY})
    assert (answer.status, answer.body["code"]) == (429, "quota_exceeded") and "overlap" in answer.body["detail"]
    assert (await api("POST", path, ann, json={})).status == 200
    assert await count(api, Token.kind == "svc", Token.revoked_at.is_(None)) == 1


@BOTH_STORES
async def test_spent_invitations_that_are_kept(api: Api, ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service keeps its newest ended invitations, those with valid tokens, and all that can be accepted."""
    monkeypatch.setattr(invites, "ENDED_INVITES", 10)
    used = (await api("POST", f"{WEB}/invites", ann, json={"for": "connect"})).body
    await api("POST", "/api/v1/invites/accept", used["code"], json={})
    async with store_of(api).database.write() as connection:
        await connection.execute(text("UPDATE invites SET created_at = 7"))
    await invitations(api, 20, first=100, used=1)
    await invitations(api, 20, first=200, revoked_at=50, created_at=2000)
    await invitations(api, 20, first=300, created_at=500)
    new = (await api("POST", f"{WEB}/invites", ann, json={"for": "connect"})).body["id"]
    listed = {one["id"] for one in (await api("GET", f"{WEB}/invites?limit=1000", ann)).body["invites"]}
    assert listed == {new, used["id"], *(f"{n:016x}" for n in (*range(210, 220), *range(300, 320)))}
    answer = await api("DELETE", f"{WEB}/invites/{used['id']}?tokens=true", ann)
    assert answer.status == 204 and await count(api, Token.kind == "cli", Token.ended_at.is_(None)) == 0


@BOTH_STORES
async def test_old_rows_go_in_batches(api: Api, ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are old, no transaction drops more than a batch, and newer rows stay."""
    monkeypatch.setattr(tidying, "BATCH", 10)
    await tokens(api, 95, revoked_at=5)
    await tokens(api, 3, first=500, revoked_at=int(time.time()))
    await invitations(api, 35, expires_at=5)
    await add(api, Change, ({"at": 5, "scope": f"ann/{n}"} for n in range(25)))
    store = store_of(api)
    dropped: list[int] = []

    def heard(_c: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE"):
            dropped.append(cursor.rowcount)

    event.listen(store.database._writers.sync_engine, "after_cursor_execute", heard)
    await store.forget_ended()
    await store.changes.forget_old()
    assert max(dropped) == 10 and sum(dropped) == 95 + 35 + 25
    assert await count(api, Token.kind == "cli") == 3


@BOTH_STORES
async def test_changes_that_were_missed(api: Api, ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number of changes is kept and read at once; a relay that missed some checks all that runs on it."""
    monkeypatch.setattr(changes, "_MOST", 50)
    monkeypatch.setattr(changes, "_AT_ONCE", 20)
    feed = Feed(store_of(api), api.gate, audit_days=90)
    await add(api, Change, [{"scope": "ann"}])
    feed._last = await store_of(api).changes.newest()
    await add(api, Change, ({"scope": f"bob/{n}"} for n in range(30)))
    api.gate.calls.clear()
    await feed._look()
    # The relay's own feed reads changes, too.
    assert set(api.gate.calls) - {"recheck ann"} == {f"recheck bob/{n}" for n in range(30)}
    await add(api, Change, ({"scope": f"eve/{n}"} for n in range(100)))
    await store_of(api).changes.forget_old()
    assert await count(api, Change.id > 0) == 50
    api.gate.calls.clear()
    await feed._look()
    await feed._look()
    assert "recheck all" in api.gate.calls and "recheck eve/0" not in api.gate.calls


async def test_uses_are_stored_in_batches(api: Api, ann: str, tmp_path: Path) -> None:
    """When many tokens were used, each of them is stored, in transactions that stay small."""
    await tokens(api, 1200)
    store = store_of(api)
    store._used = {f"{n:016x}": 7 for n in range(1200)}
    began: list[object] = []
    event.listen(store.database._writers.sync_engine, "begin", began.append)
    await store.write_used()
    assert len(began) == 3 and await count(api, Token.last_used_at == 7) == 1200
