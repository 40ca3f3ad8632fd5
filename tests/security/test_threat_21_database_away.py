"""Threat 21: the database is locked or missing."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from tests.security.site import Agent, Caller, carried, made, offers, site


async def test_a_locked_file(folder: Path) -> None:
    """While another process holds the write lock, registration and readyz answer 503, and streams go on."""
    async with (
        site(folder, database_wait=0.05) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
    ):
        admin = await caller.admin()
        await made(caller, "/services", admin, name="web", access="token")
        assert await offers(host, 1, "ann/web", admin) == "OFFERED"
        at_host = await carried(client, host, 1, "ann/web", admin)
        with closing(sqlite3.connect(folder / "relay.db", isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            for method, path, body in (("POST", "/api/v1/admins", {"handle": "bob"}), ("GET", "/readyz", None)):
                answer = await caller(method, path, json=body)
                assert answer.status == 503
                assert answer.body["code"] == "storage_unavailable"
                assert int(answer.headers["Retry-After"]) >= 1
            client.send(frame(frames.DATA, 1, 0, b"x"))
            assert (await host.next(frames.DATA))[2] == at_host
        assert (await caller("POST", "/api/v1/admins", json={"handle": "bob"})).status == 201


async def test_a_database_that_is_gone(folder: Path) -> None:
    """While no read succeeds, not even the recheck after a change, requests get 503 and streams go on."""
    async with (
        site(folder, database_wait=0.05) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
    ):
        admin = await caller.admin()
        await made(caller, "/services", admin, name="web", access="token")
        assert await offers(host, 1, "ann/web", admin) == "OFFERED"
        at_host = await carried(client, host, 1, "ann/web", admin)
        with closing(sqlite3.connect(folder / "relay.db", isolation_level=None)) as holder:
            for table in ("services", "tokens"):  # from now on every read of these fails
                holder.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
        relay.relay.gate.recheck("ann/web")
        assert (await caller("GET", "/api/v1/whoami", admin)).status == 503
        await asyncio.sleep(0.5)  # time for the recheck
        client.send(frame(frames.DATA, 1, 0, b"x"))
        try:
            received = (await host.next(frames.DATA))[2]
        except TimeoutError:
            received = 0
        assert received == at_host, "the stream has ended"
