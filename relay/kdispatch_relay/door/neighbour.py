"""Asks a relay on this machine, or any program that listens in its place, one question over HTTP."""

from __future__ import annotations

import json
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Final

__all__ = ["ask", "pinned", "unverified"]

_PATIENCE: Final = 5.0  # seconds
_MOST: Final = 64 * 1024  # most bytes of an answer


def ask(
    host: str, port: int, path: str, *, tls: ssl.SSLContext | None = None, token: str | None = None
) -> dict[str, Any] | None:
    """The JSON object that answers ``GET path``, also a problem; ``None`` for other answers. Raises ``OSError``.
    Blocks.
    """
    connection = (
        HTTPConnection(host, port, timeout=_PATIENCE)
        if tls is None
        else HTTPSConnection(host, port, timeout=_PATIENCE, context=tls)
    )
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token is not None else {})
        content = json.loads(connection.getresponse().read(_MOST))
    except (HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return content if isinstance(content, dict) else None


def pinned(certificate: Path) -> ssl.SSLContext:
    """A context that trusts only this certificate, with any name: on its own machine a relay is called 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def unverified() -> ssl.SSLContext:
    """A context without checks, for questions that send no secret and need only an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
