from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from tests.net.harness import Network, Relay

_SHOWN = 6000  # characters of each log


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows what its processes printed."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        network = item.funcargs.get("network")
        if isinstance(network, Network):
            for process in network.processes:
                report.sections.append((f"log of {process.name}, exit {process.status}", process.text[-_SHOWN:]))
        relay = item.funcargs.get("own_relay") or item.funcargs.get("shared_relay")
        if isinstance(relay, Relay):
            report.sections.append(("log of the relay", relay.running.text[-_SHOWN:]))
    return report


@pytest.fixture(scope="session")
def shared_relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """One relay for all tests that leave it unchanged; each test has its own services."""
    relay = Relay(tmp_path_factory.mktemp("relay"))
    try:
        asyncio.run(relay.start())
        yield relay
    finally:
        relay.stop()


@pytest.fixture
async def own_relay(tmp_path: Path) -> AsyncIterator[Relay]:
    """A relay that the test may stop or measure."""
    relay = Relay(tmp_path)
    try:
        await relay.start()
        yield relay
    finally:
        relay.stop()


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Network]:
    """Agents on the test's own relay if it asks for one, otherwise on the shared one."""
    own = "own_relay" in request.fixturenames
    relay: Relay = request.getfixturevalue("own_relay" if own else "shared_relay")
    network = Network(tmp_path, relay.url, relay.token)
    try:
        yield network
    finally:
        network.stop()
