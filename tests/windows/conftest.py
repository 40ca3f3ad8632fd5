"""Agents under Wine in place of tests/net's agents; without Wine every test here skips, and says why."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdispatch.settings import version
from tests.net.conftest import own_relay, pytest_runtest_makereport, shared_relay
from tests.net.harness import Relay
from tests.windows.environment import Lacking, WinePython, windows
from tests.windows.running import WindowsNetwork

__all__ = ["network", "own_relay", "pytest_runtest_makereport", "shared_relay", "wine"]


_WANTED = bool(os.environ.get("KDISPATCH_WINDOWS"))


@pytest.fixture(scope="session")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WinePython]:
    """Python for Windows, and Wine's server and services, which run for as long as this."""
    if not _WANTED:
        pytest.skip("no tests under Wine: they take ten minutes, and run with KDISPATCH_WINDOWS=1")
    try:
        made = windows()
    except Lacking as lacking:
        pytest.skip(f"no tests under Wine: {lacking}")
    made.installed = tmp_path_factory.mktemp("installed")
    data = Path(str(importlib.metadata.distribution("kdispatch").locate_file(f"kdispatch-{version()}.dist-info")))
    shutil.copytree(data, made.installed / data.name)
    # Not a test's processes: they go on for a few seconds, or for as long as another worker's tests.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    pipe = subprocess.PIPE
    holder = subprocess.Popen(
        made.command("-c", "print('up', flush=True); input()"),
        env={**environment, **made.variables},
        stdin=pipe, stdout=pipe, stderr=pipe,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == b"up"
    try:
        yield made
    finally:
        holder.communicate(b"\n", timeout=30)


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path, wine: WinePython) -> Iterator[WindowsNetwork]:
    """Agents on the test's own relay if it asks for one, otherwise on the shared one."""
    own = "own_relay" in request.fixturenames
    relay: Relay = request.getfixturevalue("own_relay" if own else "shared_relay")
    network = WindowsNetwork(tmp_path, relay.url, relay.token, wine)
    try:
        yield network
    finally:
        network.stop()
