"""What an upgrade of the database needs, and what a current database does without."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import select

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store import apart, upgrade
from kdispatch_relay.store.apart import upgrade_apart
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.models import Admin


def test_the_newest_revision_is_alembics() -> None:
    """The newest revision, read from the files' names, is the head of alembic's own graph."""
    config = Config()
    config.set_main_option("script_location", str(upgrade._MIGRATIONS))
    assert upgrade._head() == ScriptDirectory.from_config(config).get_current_head()


@pytest.mark.slow
def test_no_alembic_when_up_to_date(tmp_path: Path, empty_database: Path) -> None:
    """A start without migrations does not load the migration code."""
    shutil.copy(empty_database, tmp_path / "relay.db")
    code = (
        "import asyncio, sys; from kdispatch_relay.cli import _migrate;"
        f"assert asyncio.run(_migrate({str(tmp_path / 'relay.db')!r}, 5.0)) == ('0005', '0005');"
        "sys.exit('alembic' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
async def test_apart(tmp_path: Path) -> None:
    """Run apart, migrations create the tables and return the revisions; a current database starts no process."""
    database = Database(str(tmp_path / "relay.db"), migrate_apart=True)
    assert await database.start() == (None, "0005")
    assert await database.start() == ("0005", "0005")
    async with database.read() as connection:
        assert (await connection.execute(select(Admin))).all() == []
    await database.close()


@pytest.mark.slow
async def test_several_apart(tmp_path: Path) -> None:
    """Of several relays that find an empty database at the same moment, exactly one creates the tables."""
    databases = [Database(str(tmp_path / "relay.db"), migrate_apart=True) for _ in range(3)]
    told = await asyncio.gather(*(database.start() for database in databases))
    for database in databases:
        await database.close()
    assert sorted(told, key=str) == [("0005", "0005"), ("0005", "0005"), (None, "0005")]


@pytest.mark.slow
async def test_errors_apart(tmp_path: Path) -> None:
    """An error of the separate process is the one that would have been raised here."""
    file = tmp_path / "relay.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
        connection.commit()
    texts = set()
    for elsewhere in (True, False):
        database = Database(str(file), migrate_apart=elsewhere)
        with pytest.raises(KdispatchError, match="storage_unavailable") as caught:
            await database.start()
        await database.close()
        texts.add(caught.value.text)
    assert len(texts) == 1 and "another version" in texts.pop()


@pytest.mark.slow
async def test_locked_apart(tmp_path: Path) -> None:
    """A lock held by another program is reported from the separate process in the same way as here."""
    with closing(sqlite3.connect(tmp_path / "relay.db", isolation_level=None)) as holder:
        holder.execute("PRAGMA journal_mode = WAL")
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(KdispatchError) as caught:
            await upgrade_apart(str(tmp_path / "relay.db"), 0.05)
    assert (caught.value.code, caught.value.text) == (
        "storage_unavailable", "The database can't be opened: database is locked.",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("program", ["raise SystemExit(3)", "print('{}')", "print('no answer')"])
async def test_a_broken_process(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """A separate process that ends without an answer is storage_unavailable, with how it ended."""
    monkeypatch.setattr(apart, "_CHILD", program)
    with pytest.raises(KdispatchError, match="failed with status") as caught:
        await upgrade_apart("postgresql://ann:canary@nowhere/relay", 1.0)
    assert caught.value.code == "storage_unavailable"
    assert "canary" not in caught.value.text


@pytest.mark.slow
async def test_a_stopped_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cancelled start leaves no process behind."""
    file = tmp_path / "pid"
    program = f"import os, time; open({str(file)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    monkeypatch.setattr(apart, "_CHILD", program)
    start = asyncio.create_task(upgrade_apart(str(tmp_path / "relay.db"), 1.0))
    async with asyncio.timeout(20):
        while not (file.exists() and file.read_text().endswith("\n")):  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(0.01)
    start.cancel()
    await asyncio.wait([start])
    assert start.cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


@pytest.mark.slow
async def test_the_url_is_told_on_stdin_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password in the URL is in neither arguments nor environment of the process, and arrives."""
    program = (
        "import json, os, sys; task = json.loads(sys.stdin.readline());"
        "seen = 'can' 'ary' in str([sys.orig_argv, dict(os.environ)]);"
        "print(json.dumps({'before': str(seen), 'after': task['url']}))"
    )
    monkeypatch.setattr(apart, "_CHILD", program)
    url = "postgresql+asyncpg://ann:canary@nowhere/relay"
    assert await upgrade_apart(url, 1.0) == ("False", url)
