"""A running relay: from settings to a listening socket, and cleanly back."""

from __future__ import annotations

import errno
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.app import make_app
from kdispatch_relay.auth import Authority
from kdispatch_relay.seams import TunnelGate
from kdispatch_relay.settings import Settings
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.repository import Repository

__all__ = ["RunningRelay", "running_relay"]

_BACKLOG: Final = 1024  # connections the kernel holds: after a restart a whole fleet arrives in one moment
_LINGER: Final = 1.0  # seconds in which the rest of a refused body is still read, so that its sender sees the answer
_SHUTDOWN: Final = 5.0  # seconds for requests that are being answered


@dataclass(frozen=True, slots=True)
class RunningRelay:
    """Where a relay listens: ``url`` without a trailing slash, ``port`` as it really is."""

    url: str
    port: int
    authority: Authority
    gate: TunnelGate


@asynccontextmanager
async def running_relay(
    settings: Settings, make_gate: Callable[[Authority], TunnelGate], *, migrate_apart: bool = False
) -> AsyncIterator[RunningRelay]:
    """Serve until the block is left, then close sessions, requests, database, in this order.

    With ``migrate_apart`` what migrates a database is not kept in memory, for which a start that migrates takes longer.

    Raises ``port_in_use``, ``storage_unavailable``, or ``bad_request`` for an address or TLS files of no use.
    """
    tls = _tls(settings)
    database = Database(settings.database, wait=settings.database_wait, migrate_apart=migrate_apart)
    authority = Authority(Repository(database))
    gate = make_gate(authority)
    log = logging.getLogger(__name__)
    log.addFilter(_not_the_clients_fault)
    runner = web.AppRunner(
        make_app(authority, gate),
        access_log=None,
        auto_decompress=False,
        logger=log,
        shutdown_timeout=_SHUTDOWN,
        lingering_time=_LINGER,
    )
    try:
        await runner.setup()
        host, port = await _listen(runner, settings, tls)
        url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        yield RunningRelay(url, port, authority, gate)
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: Settings, tls: ssl.SSLContext | None) -> tuple[str, int]:
    host, port = settings.address
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls, backlog=_BACKLOG).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise KdispatchError("port_in_use", f"Another program listens on {settings.listen}.") from error
        reason = error.strerror or str(error)
        raise KdispatchError("bad_request", f"Can't listen on {settings.listen}: {reason}.") from error
    return host, int(runner.addresses[0][1])


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise KdispatchError("bad_request", f"The TLS certificate and key can't be used: {reason}.") from error
    return context


def _not_the_clients_fault(record: logging.LogRecord) -> bool:
    # aiohttp logs a trace for each request that isn't HTTP, and scanners send them all day.
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
