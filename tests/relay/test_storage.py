from __future__ import annotations

import asyncio
import errno
import re
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, select, update

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.engines import writing_engine
from kdispatch_relay.store.failures import StorageError, explain
from kdispatch_relay.store.location import database_url
from kdispatch_relay.store.models import Admin
from kdispatch_relay.store.place import FileMovedError
from tests.relay.support import Api, differences, relay_api
from tests.relay.test_serve import refused


@asynccontextmanager
async def opened(location: Path, wait: float = 5.0) -> AsyncIterator[Database]:
    database = Database(str(location), wait=wait)
    try:
        await database.start()
        yield database
    finally:
        await database.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    "size", [pytest.param(240, marks=pytest.mark.slow), pytest.param(960, marks=pytest.mark.accept)]
)
async def test_no_update_is_lost(api: Api, size: int) -> None:
    """Concurrent read-modify-writes all count, also from two relays on one file."""
    await api.admin("ann")

    async def increment(database: Database) -> None:
        async with database.write() as connection:
            count = await connection.scalar(select(Admin.created_at).with_for_update())
            assert count is not None
            await asyncio.sleep(0)
            await connection.execute(update(Admin).values(created_at=count + 1))

    database = api.relay.authority.repository.database
    async with database.write() as connection:
        await connection.execute(update(Admin).values(created_at=0))
    async with opened(api.file) as other:
        await asyncio.gather(*(increment(other if number % 4 == 0 else database) for number in range(size)))
    async with database.read() as connection:
        assert await connection.scalar(select(Admin.created_at)) == size


async def test_restart_keeps_everything(tmp_path: Path) -> None:
    """Admins, services and the rights of their tokens survive a restart of the relay."""
    async with relay_api(tmp_path / "relay.db") as api:
        admin = await api.admin("ann")
        service = await api.service(admin)
    async with relay_api(tmp_path / "relay.db") as api:
        assert (await api("GET", "/api/v1/whoami", admin)).body["handle"] == "ann"
        assert (await api("GET", "/api/v1/whoami", service)).body["service"] == "ann/web"


async def test_files_are_private(tmp_path: Path) -> None:
    """The database, its side files and the folder made for them are accessible to the relay's user only."""
    folder = tmp_path / "made" / "here"
    async with relay_api(folder / "relay.db") as api:
        await api.admin()
        files = list(folder.iterdir())
        assert {file.name for file in files} == {"relay.db", "relay.db-wal", "relay.db-shm"}
        assert {mode(file) for file in files} == {0o600}
    assert mode(folder) == 0o700


@pytest.fixture
def public_file(tmp_path: Path) -> Path:
    file = tmp_path / "relay.db"
    tmp_path.chmod(0o755)
    file.touch()
    file.chmod(0o644)
    return file


async def test_open_file_is_closed_to_others(public_file: Path) -> None:
    """A database file that others could read is made private; an existing folder is left as it is."""
    async with opened(public_file):
        assert mode(public_file) == 0o600
        assert mode(public_file.parent) == 0o755


async def test_only_digests_are_stored(api: Api) -> None:
    """A stolen copy of the database's files contains no token."""
    admin = await api.admin("ann")
    service = await api.service(admin)
    stored = b"".join(file.read_bytes() for file in api.file.parent.iterdir())
    assert b"ann" in stored
    for token in (admin, service):
        assert token.encode() not in stored
        assert token[4:40].encode() not in stored


async def test_locked_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While another program holds the write lock, registration answers 503, look-ups go on, and readyz fails."""
    async with relay_api(tmp_path / "relay.db", database_wait=0.05) as api:
        admin = await api.admin("ann")
        await api.service(admin)
        with closing(sqlite3.connect(api.file, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            answers = await asyncio.gather(*(api("POST", "/api/v1/admins", json={"handle": f"a{n}"}) for n in range(4)))
            for answer in [*answers, await api("GET", "/readyz")]:
                assert (answer.status, answer.body["code"]) == (503, "storage_unavailable")
                assert answer.headers["Retry-After"] == "2"
            assert (await api("GET", "/api/v1/services/ann/web")).status == 200
            assert (await api("GET", "/healthz")).status == 200
            assert len(caplog.records) == 1
        assert (await api("POST", "/api/v1/admins", json={"handle": "bob"})).status == 201
    assert [record.getMessage() for record in caplog.records if record.name.startswith("kdispatch")] == [
        "The relay can't write the database: database is locked.",
        "The relay can write the database again.",
    ]


async def test_two_relays_start_at_once(tmp_path: Path) -> None:
    """Relays that start at the same moment on a new file all come up, and the tables are created once."""

    async def start() -> None:
        async with opened(tmp_path / "relay.db") as database, database.read() as connection:
            await connection.execute(select(Admin))

    await asyncio.gather(*(start() for _ in range(6)))


async def test_tables_of_a_newer_version(tmp_path: Path) -> None:
    """A database that a newer relay has changed is left alone."""
    file = tmp_path / "relay.db"
    async with opened(file):
        pass
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(KdispatchError, match="another version of kdispatch") as caught:
        async with opened(file):
            pass
    assert caught.value.code == "storage_unavailable"
    assert isinstance(caught.value, StorageError) and "the version that wrote it" in caught.value.hint


async def test_not_a_database(tmp_path: Path) -> None:
    """A file that is not a database is not written to."""
    file = tmp_path / "relay.db"
    file.write_text("somebody's diary\n" * 100)
    with pytest.raises(KdispatchError, match="storage_unavailable"):
        async with opened(file):
            pass
    assert file.read_text().startswith("somebody's diary")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "said", "tried"),
    [
        ("damage", "malformed", "Restore a backup"),
        ("other", "not a database", "Restore a backup"),
        ("folder", "unable to open|is a directory", "Check --database"),
    ],
)
def test_what_is_wrong_at_the_start(tmp_path: Path, harm: str, said: str, tried: str) -> None:
    """A relay that cannot use its database ends with 1, says why, and what its operator can do."""
    file = tmp_path / "relay.db"
    if harm == "folder":
        file.mkdir()
    elif harm == "other":
        file.write_text("somebody's diary\n" * 1000)
    else:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num)")
        pages = file.read_bytes()
        file.write_bytes(pages[:100] + b"\xff" * (len(pages) - 100))
    ended = refused(tmp_path, "--listen", "127.0.0.1:0", "--database", str(file))
    first, _, hint = ended.stderr.splitlines()
    assert ended.returncode == 1 and re.search(said, first), first
    assert first.endswith("[storage_unavailable]") and hint.startswith(f"  try:   {tried}")


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (sqlite3.OperationalError("database is locked"), "does not answer"),
        (OSError(errno.ENOSPC, "full"), "no room"),
        (OSError(errno.EROFS, "read-only"), "can't be written"),
        (FileMovedError("moved"), "not in its place"),
        (TimeoutError(), "does not answer"),
    ],
)
def test_what_is_wrong_is_told_without_a_path(reason: Exception, text: str) -> None:
    """Strangers see the kind of a database's fault, but no path."""
    assert text in explain(reason).text


async def test_migrations_make_the_models(tmp_path: Path) -> None:
    """The tables of the migrations are those that the models describe."""
    async with opened(tmp_path / "relay.db") as database, database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_changing_a_table_keeps_the_others(api: Api) -> None:
    """A migration that recreates a table loses no row of the tables that refer to it."""
    token = await api.service(await api.admin("ann"))

    def rebuild(connection: Connection) -> None:
        with Operations(MigrationContext.configure(connection)).batch_alter_table("admins", recreate="always"):
            pass

    engine = writing_engine(database_url(str(api.file)), 5.0, foreign_keys=False)
    async with engine.begin() as connection:
        await connection.run_sync(rebuild)
    await engine.dispose()
    assert (await api("GET", "/api/v1/whoami", token)).status == 200


def test_default_location(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a setting, the data is in the platform's data directory of the user."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert database_url("").database == str(tmp_path / "kdispatch" / "relay.db")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/var/lib/relay.db", "sqlite+aiosqlite:////var/lib/relay.db"),
        ("sqlite:////var/lib/relay.db", "sqlite+aiosqlite:////var/lib/relay.db"),
        ("sqlite+aiosqlite:////var/lib/relay.db", "sqlite+aiosqlite:////var/lib/relay.db"),
        ("postgresql://ann:pw@db/relay", "postgresql+asyncpg://ann:pw@db/relay"),
        ("postgresql+asyncpg://ann@db:5433/relay", "postgresql+asyncpg://ann@db:5433/relay"),
    ],
)
def test_location(text: str, expected: str) -> None:
    """A path and every usual form of a URL lead to an asyncio driver."""
    assert database_url(text).render_as_string(hide_password=False) == expected


@pytest.mark.parametrize(
    "text", [":memory:", "sqlite://", "sqlite:///:memory:", "sqlite:///x?mode=memory", "mysql://a:secret@b/c", "://"]
)
def test_refused_location(text: str) -> None:
    """A database that cannot keep data, or of an unknown kind, is refused without repeating its password."""
    with pytest.raises(KdispatchError) as caught:
        database_url(text)
    assert caught.value.code == "bad_request"
    assert "secret" not in caught.value.text
