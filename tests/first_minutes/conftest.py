from __future__ import annotations

from tests.net.conftest import own_relay, shared_relay

__all__ = ["own_relay", "shared_relay"]
