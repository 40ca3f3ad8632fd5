"""A relay that starts reports a write-ahead log that SQLite would silently ignore."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kdispatch_relay.store.location import prepare_file


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A database as a crash leaves it: its last change is only in the log."""
    live, file = tmp_path / "live.db", tmp_path / "relay.db"
    with closing(sqlite3.connect(live, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE words (word)")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("INSERT INTO words VALUES ('kept')")
        for suffix in ("", "-wal"):
            shutil.copy(f"{live}{suffix}", f"{file}{suffix}")
    return file


def _words(file: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(file)) as connection:
        found: list[tuple[str]] = connection.execute("SELECT word FROM words").fetchall()
        return found


def _magic(log: bytes) -> bytes:
    return b"\0\0\0\0" + log[4:]


def _checksum(log: bytes) -> bytes:
    return log[:20] + bytes([log[20] ^ 1]) + log[21:]


def _short(log: bytes) -> bytes:
    return log[:20]


@pytest.mark.parametrize("harm", [_magic, _checksum, _short])
def test_a_damaged_log(crashed: Path, harm: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture) -> None:
    """With a damaged log the change is lost without a word from SQLite; the relay reports it."""
    log = crashed.with_name("relay.db-wal")
    log.write_bytes(harm(log.read_bytes()))
    prepare_file(crashed, 1.0)
    assert _words(crashed) == []
    (record,) = caplog.records
    assert record.getMessage().startswith(f"The write-ahead log {log} is damaged, so SQLite ignores it")


def test_a_log_that_is_well(crashed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A log left by a crash is recovered, and an empty or missing one is not reported."""
    prepare_file(crashed, 1.0)
    assert _words(crashed) == [("kept",)]
    log = crashed.with_name("relay.db-wal")
    log.unlink(missing_ok=True)
    prepare_file(crashed, 1.0)
    log.write_bytes(b"")
    prepare_file(crashed, 1.0)
    assert caplog.records == []
