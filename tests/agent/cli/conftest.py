from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.cli.fake_relay import FakeRelay, Shell
from tests.guards.environment import inherited


@pytest.fixture(autouse=True)
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the real home directory, or the settings of the user who runs it."""
    for name in os.environ.keys() - inherited().keys():
        monkeypatch.delenv(name)
    directory = tmp_path / "config"
    monkeypatch.setenv("KDISPATCH_CONFIG_DIR", str(directory))
    return directory


@pytest.fixture
async def relay() -> AsyncIterator[FakeRelay]:
    fake = FakeRelay()
    runner = await fake.start()
    yield fake
    await runner.cleanup()


@pytest.fixture
def kdispatch(own_configuration: Path, relay: FakeRelay) -> Shell:
    return Shell(own_configuration, relay)
