"""A real PostgreSQL for tests of the store, and the marks of tests that use it."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Mapping
from itertools import count
from typing import Final

import pytest

from kdispatch_relay.store.database import Database
from tests.net.harness import needs
from tests.programs.install import find

__all__ = ["BOTH_STORES", "POSTGRES", "Server"]

#: What a test on PostgreSQL alone is marked with.
POSTGRES: Final = (
    pytest.mark.slow,
    needs(find("initdb"), find("postgres"), find("psql")),
    pytest.mark.skipif(importlib.util.find_spec("asyncpg") is None, reason="not installed: asyncpg"),
)
#: A test of the fixture ``location``, or of what stands on it, runs on either database.
BOTH_STORES: Final = pytest.mark.parametrize(
    "location", ["sqlite", pytest.param("postgres", marks=POSTGRES)], indirect=True
)
_SHARED: Final = "relay"
_TABLES: Final = ("admins", "audit", "changes", "invites", "services", "tokens")


class Server:
    """A server that runs on ``port``; ``environment`` is what its programs need to log in."""

    def __init__(self, port: int, environment: Mapping[str, str]) -> None:
        self._port = port
        self._environment = environment
        self._numbers = count()

    async def start(self) -> None:
        """Create the database that most tests share, with its tables: one per test would take 8 MB and a second."""
        self._psql("postgres", f"CREATE DATABASE {_SHARED}")
        database = Database(self._url(_SHARED))
        await database.start()
        await database.close()

    def emptied(self) -> str:
        """The URL of a database whose tables are empty except for the relay's id; tests use it one after another."""
        self._psql(_SHARED, f"TRUNCATE {', '.join(_TABLES)} RESTART IDENTITY")
        return self._url(_SHARED)

    def new(self) -> str:
        """The URL of a database without tables."""
        name = f"{_SHARED}{next(self._numbers)}"
        self._psql("postgres", f"CREATE DATABASE {name}")
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://ann:{self._environment['PGPASSWORD']}@127.0.0.1:{self._port}/{name}"

    def _psql(self, name: str, command: str) -> None:
        words = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self._port), "-d", name]
        line = [find("psql"), *words, "-c", command]
        subprocess.run(line, env=dict(self._environment), check=True, capture_output=True, timeout=60)
