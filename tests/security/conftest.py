from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.edges.conftest import edge_of
from tests.first_minutes.watch import watch
from tests.net.conftest import network, own_relay, pytest_runtest_makereport, shared_relay
from tests.relay.conftest import certificate, empty_database

__all__ = [
    "certificate",
    "edge_of",
    "empty_database",
    "network",
    "own_relay",
    "pytest_runtest_makereport",
    "shared_relay",
    "watch",
]


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    """The folder of the database, with its tables, for a relay in this process."""
    shutil.copy(empty_database, tmp_path / "relay.db")
    return tmp_path
