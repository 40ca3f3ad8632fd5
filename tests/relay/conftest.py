from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kdispatch_relay.store.database import Database
from tests.relay.support import Api, relay_api


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose tables are made: a relay on a copy of it starts in a third of the time."""
    file = tmp_path_factory.mktemp("empty") / "relay.db"

    async def make() -> None:
        database = Database(str(file))
        await database.start()
        await database.close()

    asyncio.run(make())
    return file


@pytest.fixture
async def api(tmp_path: Path, empty_database: Path) -> AsyncIterator[Api]:
    shutil.copy(empty_database, tmp_path / "relay.db")
    async with relay_api(tmp_path / "relay.db") as running:
        yield running
