from __future__ import annotations

from tests.first_minutes.watch import watch
from tests.net.conftest import own_relay, shared_relay

__all__ = ["own_relay", "shared_relay", "watch"]
