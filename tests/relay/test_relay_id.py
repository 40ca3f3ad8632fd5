"""The relay's id, which belongs to the database and not to a process."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Hello, Welcome
from kdispatch_relay.store import upgrade
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.repository import Repository
from tests.relay.support import relay_api
from tests.relay.test_door import relay_with
from tests.relay.test_gate import _Agent


async def _told(file: Path) -> str:
    async with relay_api(file) as api:
        return api.gate.relay_id


async def test_it_stays(tmp_path: Path) -> None:
    """A relay that restarts on its database keeps its id, and one on another database has another id."""
    first = await _told(tmp_path / "relay.db")
    assert re.fullmatch(r"[0-9a-f]{32}", first)
    assert await _told(tmp_path / "relay.db") == first
    assert await _told(tmp_path / "other.db") != first


async def test_two_at_once_share_it(tmp_path: Path) -> None:
    """Two relays that start at the same moment on one new database have one id."""
    databases = [Database(str(tmp_path / "relay.db")) for _ in range(3)]
    try:
        await asyncio.gather(*(database.start() for database in databases))
        ids = [await Repository(database).relay_id() for database in databases]
    finally:
        for database in databases:
            await database.close()
    assert len(set(ids)) == 1


async def test_agents_are_told(tmp_path: Path) -> None:
    """WELCOME and the relay's state contain the id."""
    async with relay_with(tmp_path) as relay, _Agent.of(relay, hello=False) as agent:
        agent.send(frame(frames.HELLO, payload=Hello(versions=[1], secret="11" * 32).encode()))
        welcome = Welcome.parse((await agent.next(frames.WELCOME))[4])
        assert welcome.relay == relay.gate.state().relay == await relay.authority.repository.relay_id()


@pytest.mark.slow
async def test_an_older_database_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of the first revision keeps its content, and gets an id that stays."""
    file = tmp_path / "relay.db"

    def to_the_first(connection: Connection) -> None:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(upgrade._MIGRATIONS))
        command.upgrade(config, "0001")

    with monkeypatch.context() as patched:
        patched.setattr(upgrade, "_run_migrations", to_the_first)
        database = Database(str(file))
        await database.start()
        await database.close()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("INSERT INTO admins VALUES (7, 'ann', 0)")
        connection.commit()
    database = Database(str(file))
    assert await database.start() == ("0001", "0005")
    await database.close()
    first = await _told(file)
    assert await _told(file) == first
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT handle FROM admins").fetchall() == [("ann",)]
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT INTO relay VALUES (2, 'x')")
