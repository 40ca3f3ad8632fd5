"""The relay and the agents of tests/net, and what failing tests show of them."""

from __future__ import annotations

from tests.net.conftest import network, own_relay, pytest_runtest_makereport, shared_relay

__all__ = ["network", "own_relay", "pytest_runtest_makereport", "shared_relay"]
