"""Handles, service names and the public identifier ``handle/name``."""

from __future__ import annotations

import re
from typing import Final

from kdispatch_protocol.errors import KdispatchError

__all__ = ["NAME_PATTERN", "check_name", "split_service"]

#: A handle or a service's name: a DNS label in lower case (RFC 1123, 63 octets).
NAME_PATTERN: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"

_NAME: Final = re.compile(NAME_PATTERN)


def check_name(name: str, what: str = "name") -> str:
    """Return ``name``; raise ``bad_name`` if it is not valid. The error calls it ``what``."""
    if _NAME.fullmatch(name) is None:
        raise KdispatchError("bad_name", f"{name[:80]!r} is not a valid {what}.")
    return name


def split_service(service: str) -> tuple[str, str]:
    """Split ``handle/name`` into its two parts and check them; raise ``bad_name`` if one is not valid."""
    handle, slash, name = service.partition("/")
    if not slash:
        raise KdispatchError("bad_name", f"{service[:160]!r} is not HANDLE/NAME.")
    return check_name(handle, "handle"), check_name(name, "service name")
