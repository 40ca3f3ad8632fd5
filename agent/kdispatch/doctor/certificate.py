"""The certificate that something shows at the relay's place, read although it may not be valid."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["issuer_of", "reading_context", "seen_context"]

#: X509_V_FLAG_NO_CHECK_TIME of OpenSSL: an expired certificate can be read, too.
_ANY_TIME: Final = 0x200000
_NAMES: Final = ("organizationName", "organizationalUnitName", "commonName")


def seen_context() -> ssl.SSLContext:
    """For a look at the certificate, and nothing else: whoever answers is told nothing behind it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def reading_context(certificate: bytes) -> ssl.SSLContext:
    """Trusts this one certificate alone: a connection with it then has the certificate's fields."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _ANY_TIME
    context.load_verify_locations(cadata=certificate)
    return context


def issuer_of(certificate: Mapping[str, Any]) -> str:
    """Who signed it, as a person would read it."""
    fields = {name: value for part in certificate.get("issuer", ()) for name, value in part}
    named = [fields[name] for name in _NAMES if name in fields]
    return ", ".join(dict.fromkeys(named)) or "nobody who is named"
