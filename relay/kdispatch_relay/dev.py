"""The relay's part of ``kdispatch dev``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kdispatch_relay.gate.gate import Gate
from kdispatch_relay.server import running_relay
from kdispatch_relay.settings import RelaySettings

__all__ = ["relay_for_dev"]


@asynccontextmanager
async def relay_for_dev(directory: Path, port: int) -> AsyncIterator[str]:
    """Serve on loopback with a database in ``directory`` until the end of the block; yields the relay's URL."""
    settings = RelaySettings(listen=f"127.0.0.1:{port}", database=str(directory / "relay.db"))
    async with running_relay(settings, Gate) as running:
        yield running.url
