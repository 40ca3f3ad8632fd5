"""The relay and the agents of tests/net, and their output in failing tests."""

from __future__ import annotations

from tests.net.conftest import network, own_relay, pytest_runtest_makereport, shared_relay

__all__ = ["network", "own_relay", "pytest_runtest_makereport", "shared_relay"]
