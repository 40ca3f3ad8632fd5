"""The audit: what is merged and what is not, how much an account and a source can write, and what is dropped first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import pytest
from sqlalchemy import event as sql_event
from sqlalchemy import func, insert, select, text

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store import audit, merging
from kdispatch_relay.store.merging import Merger, Row
from kdispatch_relay.store.models import AuditRow
from kdispatch_relay.store.records import AuditRecord
from kdispatch_relay.store.repository import Repository
from tests.relay.postgres import BOTH_STORES
from tests.relay.test_postgres import opened, service, signed_up

HOUR: Final = 1_000_000 * 3600
HOST: Final = AuditRecord(actor="svc 01 web", action="host", subject="ann/web", source="192.0.2.1", at=HOUR)
CONNECT: Final = AuditRecord(actor="anybody", action="connect", subject="ann/web", source="192.0.2.1", at=HOUR)


def merged(events: Iterable[AuditRecord], handle: str = "ann", merger: Merger | None = None) -> list[Row]:
    """The rows that these events become, in order."""
    merger = Merger() if merger is None else merger
    rows: dict[Row, None] = {}
    for event in events:
        row = merger.row(handle, event)
        assert row is not None
        rows[row] = None
    return list(rows)


def test_repetitions_are_one_row() -> None:
    """Repetitions by one actor, action, service and source are counted in a row with both times and common details."""
    again = [replace(HOST, at=HOUR + n, detail={"agent": "a", "host": f"{n:x}"}) for n in range(100)]
    [row] = merged(again)
    assert (row.count, row.at, row.last, row.detail) == (100, HOUR, HOUR + 99, {"agent": "a"})
    assert (row.actor, row.subject, row.source) == ("svc 01 web", "ann/web", "192.0.2.1")


@pytest.mark.parametrize(
    "other",
    [
        {"actor": "svc 02 web"},
        {"action": "connect"},
        {"subject": "ann/db"},
        {"source": "192.0.2.2"},
        {"at": HOUR + 3600},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_tells_rows_apart(other: dict[str, Any]) -> None:
    """Another actor, action, service, source or hour makes another row."""
    assert [row.count for row in merged([HOST, replace(HOST, **other)])] == [1, 1]


def test_what_an_agent_makes_up_tells_nothing_apart() -> None:
    """Ids of hosts and processes, addresses of one network, and the id in a host's own token make no separate rows."""
    varied = [
        replace(CONNECT, source=f"2001:db8:0:7::{n:x}", detail={"agent": f"{n:032x}"}) for n in range(1, 1000)
    ]  # fmt: skip
    [row] = merged(varied)
    assert (row.count, row.source, row.detail) == (999, "2001:db8:0:7::/64", {})
    [row] = merged(replace(HOST, action="host.withdraw", actor=f"hst {n:032x}") for n in range(1000))
    assert (row.count, row.actor) == (1000, "several")


def test_many_sources_at_one_account() -> None:
    """10,000 sources that open a public service make a hundred rows in an hour, and none of them is left out."""
    rows = merged(replace(CONNECT, source=f"10.0.{n >> 8}.{n & 255}") for n in range(10_000))
    assert len(rows) <= merging._OF_ANYBODY + 1
    assert sum(row.count for row in rows) == 10_000
    assert (rows[-1].actor, rows[-1].subject, rows[-1].source) == ("anybody", "ann", "")


def test_one_source_at_all_services_of_an_account() -> None:
    """A stranger takes few of an account's rows, so others, above all those with tokens, keep detailed ones."""
    merger = Merger()
    rows = merged((replace(CONNECT, subject=f"ann/s{n}") for n in range(1000)), merger=merger)
    assert len(rows) == merging._OF_SOURCE + 1 and (rows[-1].subject, rows[-1].source) == ("ann", "192.0.2.1")
    [other] = merged([replace(CONNECT, source="192.0.2.2")], merger=merger)
    assert other.subject == "ann/web"
    merged((replace(CONNECT, source=f"10.0.{n >> 8}.{n & 255}") for n in range(10_000)), merger=merger)
    [row] = merged([replace(CONNECT, actor="token 07", source="192.0.2.3")], merger=merger)
    assert (row.actor, row.source) == ("token 07", "192.0.2.3")


def test_an_owner_with_many_tokens() -> None:
    """Unlimited tokens, services and addresses make a bounded number of rows for their account."""
    varied = (
        replace(HOST, actor=f"svc {n:x} x", subject=f"ann/s{n}", source=f"10.0.{n >> 8}.{n & 255}") for n in range(9000)
    )
    rows = merged(varied)
    assert len(rows) <= merging._OF_TOKENS + 1 and sum(row.count for row in rows) == 9000
    assert rows[-1].actor == "several"


def test_one_source_at_many_accounts() -> None:
    """The rows of one source over all accounts are bounded; above that, an account gets one row an hour for them."""
    merger = Merger()
    rows = [
        row
        for n in range(3000)
        for service in ("a", "b", "c")
        for row in merged([replace(CONNECT, subject=f"h{n}/{service}")], f"h{n}", merger)
    ]
    told = [row for row in rows if row.source]
    assert len(set(told)) <= merging._BY_ANYBODY
    assert len(set(rows)) <= merging._BY_ANYBODY + 3000 and sum(row.count for row in set(rows)) == 9000


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rows in an hour is bounded, and the next hour begins with none."""
    monkeypatch.setattr(merging, "_MOST", 50)
    merger = Merger()
    found = [merger.row(f"h{n}", replace(HOST, source=f"10.0.{n >> 8}.{n & 255}")) for n in range(500)]
    assert len(merger) == 100 and found.count(None) == 400
    merged([replace(HOST, at=HOUR + 3600)], merger=merger)
    assert len(merger) == 1


# --- in the table ---------------------------------------------------------------------------------


async def rows_of(store: Repository) -> int:
    async with store.database.read() as connection:
        found: int = (await connection.execute(select(func.count()).select_from(AuditRow))).scalar_one()
    return found


@BOTH_STORES
async def test_rows_are_brought_up_to_date(location: str) -> None:
    """A row continues to count once it is in the table; changes by the owner beside it are never merged."""
    async with opened(location) as store:
        owner = await signed_up(store)
        await service(store, owner)
        for turn in range(3):
            for n in range(100):
                store.audit.note("ann", replace(HOST, at=HOUR + turn * 100 + n, detail={"host": str(n), "agent": "a"}))
                store.audit.note("ann", replace(CONNECT, source=f"198.51.100.{n % 4}"))
                store.audit.note("nobody", HOST)
            await store.audit.write_notes()
            await store.services.change(owner, "web", {"pins": turn % 2 == 0}, source="")
        events = await store.audit.read("ann")
        told = {(event.action, event.source): event for event in events}
        host = told["host", "192.0.2.1"]
        assert (host.count, host.at, host.last, host.detail) == (300, HOUR, HOUR + 299, {"agent": "a"})
        assert [told["connect", f"198.51.100.{n}"].count for n in range(4)] == [75] * 4
        assert [event.action for event in events].count("service.change") == 3
        assert len(events) == 5 + 5
        [event] = [
            event for event in await store.audit.read("ann", service="ann") if event.action == "sign_up"
        ] or events[-1:]
        assert (event.count, event.last) == (1, event.at)


@BOTH_STORES
@pytest.mark.slow
async def test_growth(location: str) -> None:
    """10,000 OFFERs and 10,000 opens, from one source and from many, with any invented ids, make few rows."""
    async with opened(location) as store:
        await service(store, await signed_up(store))
        before = await rows_of(store)
        for n in range(10_000):
            store.audit.note("ann", replace(HOST, detail={"agent": f"{n:032x}", "host": f"{n:032x}"}))
            store.audit.note("ann", replace(CONNECT, detail={"agent": f"{n:032x}"}))
            if n % 500 == 0:
                await store.audit.write_notes()
        await store.audit.write_notes()
        assert await rows_of(store) - before == 2
        for n in range(10_000):
            store.audit.note("ann", replace(HOST, source=f"10.1.{n >> 8}.{n & 255}"))
            store.audit.note("ann", replace(CONNECT, source=f"10.2.{n >> 8}.{n & 255}"))
            if n % 500 == 0:
                await store.audit.write_notes()
        await store.audit.write_notes()
        assert await rows_of(store) - before <= merging._OF_TOKENS + merging._OF_ANYBODY + 2
        events = await store.audit.read("ann", limit=1000)
        assert sum(event.count for event in events if event.action == "host") == 20_000
        assert sum(event.count for event in events if event.action == "connect") == 20_000


@BOTH_STORES
async def test_a_row_that_could_not_be_stored(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that could not be written is written later, complete; an id that was rolled back belongs to no row."""
    async with opened(location) as store:
        owner = await signed_up(store)
        store.audit.note("ann", HOST)

        def fail(_: Any) -> None:
            raise OSError("the disk is full")

        sql_event.listen(store.database._writers.sync_engine, "commit", fail)
        with pytest.raises(KdispatchError, match="storage_unavailable"):
            await store.audit.write_notes()
        sql_event.remove(store.database._writers.sync_engine, "commit", fail)
        await service(store, owner)  # on SQLite its row gets the id that was rolled back
        store.audit.note("ann", replace(HOST, at=HOUR + 5))
        await store.audit.write_notes()
        events = {event.action: event for event in await store.audit.read("ann")}
        assert (events["host"].count, events["host"].last) == (2, HOUR + 5)
        assert (events["service.create"].count, events["service.create"].actor) == (1, owner.actor)


async def add(store: Repository, admin: int | None, action: str, count: int) -> None:
    row = {"at": 5, "admin_id": admin, "actor": "a", "action": action, "subject": "ann/web", "source": ""}
    async with store.database.write() as connection:
        await connection.execute(insert(AuditRow), [row] * count)


@BOTH_STORES
async def test_what_goes_first(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each action of each account has its own limit: noise replaces older noise of that account only."""
    monkeypatch.setattr(audit, "_KEPT", ((True, 20, 50), (False, 40, 200)))
    async with opened(location) as store:
        ann, bob = await signed_up(store), await signed_up(store, "bob")
        await add(store, ann.admin_id, "token.create", 10)
        await add(store, ann.admin_id, "connect", 300)
        await add(store, ann.admin_id, "host", 30)
        await add(store, ann.admin_id, "service.rotate", 100)
        await add(store, bob.admin_id, "connect", 5)
        await add(store, None, "code.create", 50)
        newest = (await store.audit.read("ann"))[0].id
        await store.audit.trim()

        async def counts(handle: str | None) -> dict[str, int]:
            found: dict[str, int] = {}
            for event in await store.audit.read(handle, limit=1000):
                found[event.action] = found.get(event.action, 0) + 1
            return found

        assert await counts("ann") == {
            "sign_up": 1, "token.create": 10, "connect": 20, "host": 20, "service.rotate": 40,
        }  # fmt: skip
        assert await counts("bob") == {"sign_up": 1, "connect": 5}
        assert (await counts(None))["code.create"] == 40
        assert (await store.audit.read("ann"))[0].id == newest  # the newest stay
        monkeypatch.setattr(audit, "_KEPT", ((True, 20, 25), (False, 40, 200)))
        await store.audit.trim()
        assert (await counts("ann"))["connect"] == (await counts("ann"))["host"] == 10
        assert (await counts("bob"))["connect"] == 5  # an account with few rows loses nothing


async def test_the_table_is_read_by_its_indexes(location: str) -> None:
    """No page of an account, of one of its services, or of all is found by a scan of every row."""
    async with opened(location) as store:
        ann = await signed_up(store)
        await add(store, ann.admin_id, "connect", 50)
        asked: list[tuple[str, Any]] = []
        sql_event.listen(
            store.database._readers.sync_engine, "before_cursor_execute", lambda *a: asked.append((a[2], a[3]))
        )
        for options in ({}, {"service": "ann/web"}, {"before": 30}, {"service": "ann/web", "before": 30}):
            await store.audit.read("ann", **options)
        await store.audit.read(None, before=30)
        async with store.database.read() as connection:
            for statement, parameters in tuple(asked):
                plan = [
                    str(row.detail)
                    for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                ]
                assert not [step for step in plan if step.startswith("SCAN ") or "TEMP B-TREE" in step], plan


@BOTH_STORES
async def test_an_audit_of_an_older_relay(location: str) -> None:
    """A row from before events were merged counts as one event."""
    async with opened(location) as store:
        ann = await signed_up(store)
        values = f"5, {ann.admin_id}, 'anybody', 'connect', 'ann/web', '::1'"
        async with store.database.write() as connection:
            await connection.execute(
                text(f"INSERT INTO audit (at, admin_id, actor, action, subject, source) VALUES ({values})")
            )
        event = (await store.audit.read("ann"))[0]
        assert (event.count, event.at, event.last) == (1, 5, 5)
