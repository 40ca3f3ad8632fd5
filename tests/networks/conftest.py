from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.conftest import network, own_relay, pytest_runtest_makereport, shared_relay
from tests.networks.site import Authority
from tests.networks.ways import Park

__all__ = ["authority", "network", "own_relay", "park", "pytest_runtest_makereport", "shared_relay"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The CA of this module's certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def park(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Park]:
    """Relays and proxies for the whole module."""
    park = Park(tmp_path_factory.mktemp("park"), authority)
    try:
        yield park
    finally:
        park.stop()
