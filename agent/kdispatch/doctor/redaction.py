"""Removes secrets from texts shown to others: tokens, and user names and passwords in addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from kdispatch_protocol.tokens import redacted

__all__ = ["clean", "without_credentials"]

REDACTED: Final = "[redacted]"
#: What precedes the ``@`` in an address. A password may contain anything but white space. A hint's example stays.
_CREDENTIALS: Final = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)(?!USER:PASSWORD@HOST:PORT(?:[\s,\"']|$))[^\s\"'<>]*@")
_AUTHORIZATION: Final = re.compile(r"(?im)\b((?:proxy-)?authorization\"?\s*[:=]\s*\"?(?:[a-z]+ +)?)[^\s\"']+")
#: A shorter secret would also match parts of unrelated words.
_SHORT: Final = 4


def without_credentials(address: str) -> str:
    """A proxy's address, as users write it, without what precedes its ``@``."""
    before, at, place = address.rpartition("@")
    if not at:
        return address
    scheme, separator, _ = before.partition("://")
    return f"{scheme}{separator}{REDACTED}@{place}" if separator else f"{REDACTED}@{place}"


def clean(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without tokens, without credentials in addresses and headers, and without the known ``secrets``."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORT:
            text = text.replace(secret, REDACTED)
    text = _CREDENTIALS.sub(rf"\1{REDACTED}@", text)
    return redacted(_AUTHORIZATION.sub(rf"\1{REDACTED}", text))
