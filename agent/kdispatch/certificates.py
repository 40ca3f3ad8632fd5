"""What is wrong with a relay's certificate, by its stable code."""

from __future__ import annotations

import ssl
from typing import Final

from kdispatch_protocol.errors import KdispatchError

__all__ = ["certificate_error"]

#: X509_V_ERR_* of OpenSSL's x509_vfy.h; everything else means that nobody trusted signed it.
_CODES: Final = {9: "tls_not_yet_valid", 10: "tls_expired", 62: "tls_wrong_host", 64: "tls_wrong_host"}


def certificate_error(place: str, error: Exception) -> KdispatchError:
    """The error of a handshake with ``place`` that ended over its certificate, with OpenSSL's own words."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return KdispatchError("tls_unknown_ca", f"{place}: {error}.")
    code = _CODES.get(error.verify_code, "tls_unknown_ca")
    return KdispatchError(code, f"{place}: {error.verify_message.rstrip('.')}.")
