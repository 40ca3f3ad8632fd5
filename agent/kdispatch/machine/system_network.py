"""What macOS and Windows keep for all programs about the network, and Linux does not: trust store and proxies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

__all__ = ["proxies", "trust"]


def trust() -> ssl.SSLContext:
    """A context with the system's trust store."""
    import ssl  # noqa: PLC0415 - most commands need none

    import truststore  # noqa: PLC0415 - only some systems have it

    context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return context


def proxies(system: str, host: str) -> Mapping[str, str]:
    """The proxies for ``host`` by scheme, from the settings that urllib reads on this kind of system."""
    import urllib.request  # noqa: PLC0415 - takes 50 ms, and only some systems have such settings

    functions: Any = urllib.request
    if getattr(functions, f"proxy_bypass_{system}")(host):
        return {}
    found: Mapping[str, str] = getattr(functions, f"getproxies_{system}")()
    return found
