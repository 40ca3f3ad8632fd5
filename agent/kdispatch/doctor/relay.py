"""Checks through the relay's REST API: the token, and the service with its hosts."""

from __future__ import annotations

from typing import Final

from kdispatch.credentials import Credentials
from kdispatch.doctor.findings import Finding, failed, ok, warns
from kdispatch.doctor.way import Way
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient
from kdispatch_protocol.errors import CODES, KdispatchError

__all__ = ["check_service", "check_token"]


_KINDS: Final = {"adm": "admin", "svc": "service", "cli": "client"}


async def check_token(way: Way, token: str | None) -> list[Finding]:
    """Check whether the relay accepts the token that commands use."""
    if token is None:
        return [ok("token", "there is none to show")]
    try:
        async with RestClient(way.dialer, token=token) as rest:
            identity = await rest.whoami()
    except KdispatchError as error:
        return [failed("token", error)]
    kind = _KINDS.get(identity.kind, identity.kind)
    return [ok("token", f"the relay takes it: {kind} {identity.service or identity.handle}")]


async def check_service(way: Way, key: RelayUrl, typed: str, token: str | None) -> list[Finding]:
    """Check whether the service exists and has a host; its tokens are stored under ``key``."""
    try:
        full_name = Credentials().full_name(key, typed)
        if token is None:
            token = Credentials().token_for_reader(key, full_name)
        async with RestClient(way.dialer, token=token) as rest:
            service = await rest.service(full_name)
    except KdispatchError as error:
        return [failed("service", error)]
    hosts = f"{service.live_hosts} live host{'s' * (service.live_hosts != 1)}"
    if not service.live_hosts:
        row = CODES["no_live_host"]
        text = f"{service.service} ({service.access}) exists, but no host offers it at the moment."
        return [warns("service", text, row.hint, hop=row.hop, code=row.name)]
    return [ok("service", f"{service.service} ({service.access}) has {hosts}")]
