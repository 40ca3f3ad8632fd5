"""All checks in order. A check that an earlier failure makes pointless is reported as skipped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from kdispatch.credentials import Credentials
from kdispatch.doctor.findings import Finding, Level, is_sound, skipped
from kdispatch.doctor.limits import check_idle, check_speed
from kdispatch.doctor.machine import check_config, check_credentials, check_descriptors, check_files, check_port
from kdispatch.doctor.relay import check_service, check_token
from kdispatch.doctor.tunnel import Tunnel
from kdispatch.doctor.way import Way
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import Settings

__all__ = ["NEEDED", "Wishes", "examine"]

#: The checks that always run, in their order.
NEEDED: Final = (
    "config", "files", "credentials", "clock", "dns", "proxy", "tcp", "tls", "http", "upgrade", "buffering",
    "round trip", "relay", "token",
)  # fmt: skip


_NO_SESSION: Final = "not measured: there is no session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What to check besides the path to the relay. ``token`` is the given one; ``port`` is a port to be offered."""

    service: str | None = None
    token: str | None = None
    address: str = "localhost"
    port: int | None = None
    idle: bool = False
    speed: bool = False


async def examine(settings: Settings, wishes: Wishes) -> AsyncIterator[Finding]:
    """Yield each finding as soon as it is known. Raises errors of the settings."""
    for finding in await asyncio.to_thread(_kept_here, settings, wishes.token):
        yield finding
    for relay in settings.relay_urls:
        async for finding in _along(Way(settings, relay), settings.relay_url, wishes):
            yield finding
    if wishes.port is not None:
        for finding in await check_port(wishes.address, wishes.port):
            yield finding
    for finding in check_descriptors():
        yield finding


def _kept_here(settings: Settings, token: str | None) -> list[Finding]:
    found = [*check_config(settings), *check_files(settings)]
    return found + check_credentials(settings.relay_url, token)


async def _along(way: Way, key: RelayUrl, wishes: Wishes) -> AsyncIterator[Finding]:
    """Check one URL of the relay; tokens are stored under ``key``."""
    found = await _walk(way)
    # The clock first: if it is wrong, the findings about certificates are not reliable.
    for finding in (*await way.check_clock(), *found):
        yield finding
    broken = next((finding.check for finding in found if finding.level is Level.FAIL), "")
    tunnel = Tunnel(way)
    try:
        async for finding in _inside(tunnel, broken):
            yield finding
        async for finding in _at_the_relay(way, key, wishes, broken):
            yield finding
        async for finding in _measured(tunnel, wishes):
            yield finding
    finally:
        tunnel.close()


async def _walk(way: Way) -> list[Finding]:
    """Run step after step, up to the first that fails."""
    found: list[Finding] = []
    steps = {
        "dns": way.check_dns, "proxy": way.check_proxy, "tcp": way.check_tcp, "tls": way.check_tls,
        "http": way.check_http,
    }  # fmt: skip
    broken = ""
    for name, step in steps.items():
        if broken:
            found.append(skipped(name, f"not looked at: {broken} failed"))
            continue
        found += await step()
        broken = next((finding.check for finding in found if finding.level is Level.FAIL), "")
    return found


async def _inside(tunnel: Tunnel, broken: str) -> AsyncIterator[Finding]:
    steps: dict[str, Callable[[], Awaitable[list[Finding]]]] = {
        "upgrade": tunnel.check_upgrade,
        "buffering": tunnel.check_buffering,
        "round trip": tunnel.check_round_trip,
        "relay": tunnel.check_relay,
    }
    for name, step in steps.items():
        if broken:
            yield skipped(name, f"not looked at: {broken} failed")
            continue
        findings = await step()
        for finding in findings:
            yield finding
        broken = "" if is_sound(findings) else name


async def _at_the_relay(way: Way, key: RelayUrl, wishes: Wishes, broken: str) -> AsyncIterator[Finding]:
    if broken:
        for name in ("token", *(["service"] if wishes.service is not None else [])):
            yield skipped(name, f"not looked at: {broken} failed")
        return
    token = wishes.token or Credentials().admin_token(key)
    for finding in await check_token(way, token):
        yield finding
    if wishes.service is not None:
        for finding in await check_service(way, key, wishes.service, token):
            yield finding


async def _measured(tunnel: Tunnel, wishes: Wishes) -> AsyncIterator[Finding]:
    session = tunnel.session if tunnel.welcome is not None else None
    if wishes.speed:
        for finding in [skipped("speed", _NO_SESSION)] if session is None else await check_speed(session):
            yield finding
    if wishes.idle:
        for finding in (
            [skipped("idle", _NO_SESSION)] if session is None else await check_idle(tunnel.open_quiet, tunnel.owner)
        ):
            yield finding
