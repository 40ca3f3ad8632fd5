"""Trust in a relay: authorities, pins, a client certificate; and why a relay's certificate is refused.

Verification can't be turned off.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from kdispatch.machine.operating_system import HERE
from kdispatch.network.certificate import Certificate
from kdispatch.relay_url import is_host
from kdispatch.settings import Settings
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.session.aio.handover import connection_over
from kdispatch_protocol.wire.messages import printable

__all__ = ["Trust", "certificate_error", "seen_certificate"]

#: Where systems keep their authorities, for a Python whose OpenSSL was built for another location.
_CA_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # their newer versions
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # BSD, macOS
)
_PIN: Final = re.compile(r"sha256(?::|//)(?P<value>\S+)")
_PIN_BYTES: Final = 32
#: Seconds for a second look at a refused certificate: the problem is known, only details are missing.
_LOOK: Final = 3.0

#: Why a certificate was refused, by OpenSSL (X509_V_ERR_* of x509_vfy.h) or by a system with its own store: macOS
#: (errSec* of SecBase.h) and Windows (CERT_E_* of winerror.h, where one number covers both ends of the validity).
_CODES: Final = {
    9: "tls_not_yet_valid", 10: "tls_expired", 62: "tls_wrong_host", 64: "tls_wrong_host",
    -67819: "tls_not_yet_valid", -67818: "tls_expired", -67602: "tls_wrong_host",
    0x800B0101: "tls_expired", 0x800B010F: "tls_wrong_host",
}  # fmt: skip
#: Codes for an unknown issuer; the first ones also if the chain is incomplete.
_CUT_CHAIN: Final = frozenset({2, 20, 21})
_UNKNOWN: Final = _CUT_CHAIN | {18, 19, 27, -67843, 0x800B0109, 0x800B010A}
_NAMES: Final = 4  # names of a certificate that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a relay's certificate must be. Files are absolute paths or empty; ``pins`` are digests of public keys.

    ``server_name`` is the name that it must have instead of the one in the relay's URL.
    """

    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    server_name: str = ""
    pins: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read the settings; raises :class:`SetupError` for an invalid pin."""
        if settings.server_name and not is_host(settings.server_name):
            text = f"{settings.server_name[:100]!r} is no server's name."
            raise SetupError("bad_request", text, hint="Write --server-name as the certificate has it.")
        return cls(
            ca_file=settings.ca_file,
            client_cert=settings.client_cert,
            client_key=settings.client_key,
            server_name=settings.server_name,
            pins=tuple(_pin(text.strip()) for text in settings.pin.split(",") if text.strip()),
        )

    def context(self) -> ssl.SSLContext:
        """A context that verifies; ``SetupError`` for unusable files. It reads files, so never call it in a loop."""
        context = self._authorities()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python 3.13 and later set this, and it refuses certificates made by boxes in company networks.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.ca_file:  # an intermediate issuer is enough, as by default in Python 3.13
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.client_key and not self.client_cert:
            raise SetupError("bad_request", "A client key without its certificate.", hint="Give --client-cert, too.")
        if self.client_cert:
            with _reading("client certificate", self.client_cert, self.client_key):
                # Without a password, OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.client_cert, self.client_key or None, password=lambda: b"")
        return context

    def _authorities(self) -> ssl.SSLContext:
        if self.ca_file:
            with _reading("file of certificates", self.ca_file):
                return ssl.create_default_context(cafile=self.ca_file)
        named = any(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
        if not named and (own := HERE.system_trust()) is not None:
            return own
        context = ssl.create_default_context()
        if not named and not context.cert_store_stats()["x509_ca"] and not ssl.get_default_verify_paths().capath:
            for name in _CA_FILES:
                if Path(name).is_file():
                    context.load_verify_locations(name)
                    break
        return context

    def check(self, ssl_object: ssl.SSLObject | ssl.SSLSocket, place: str) -> None:
        """Raise ``tls_wrong_pin`` if there are pins, and the verified certificate of ``place`` has another key."""
        if not self.pins:
            return
        try:
            key = Certificate.parse(ssl_object.getpeercert(binary_form=True) or b"").key
        except ValueError as error:
            raise KdispatchError("tls_wrong_pin", f"{place}: its certificate can't be read.") from error
        if key not in self.pins:
            text = f"{place}: its public key is sha256:{key.hex()}, which is not pinned."
            raise KdispatchError("tls_wrong_pin", text)


def _pin(text: str) -> bytes:
    match = _PIN.fullmatch(text)
    if match is not None:
        value = match["value"]
        with contextlib.suppress(ValueError, binascii.Error):
            found = bytes.fromhex(value) if len(value) == 2 * _PIN_BYTES else base64.b64decode(value, validate=True)
            if len(found) == _PIN_BYTES:
                return found
    hint = "Write sha256: and the 64 hexadecimal digits, or the base64, of the SHA-256 of the public key."
    raise SetupError("bad_request", f"{text[:100]!r} is no pin.", hint=hint)


@contextlib.contextmanager
def _reading(what: str, *names: str) -> Iterator[None]:
    """Report an error in the block as a fault of these files."""
    try:
        yield
    except (OSError, ssl.SSLError, ValueError) as error:
        files = " and ".join(name for name in names if name)
        text = f"The {what} {files} can't be used: {_words(error)}."
        hint = "Check the file: PEM, readable, and a key without a password."
        raise SetupError("bad_request", text, hint=hint) from error


async def seen_certificate(sock: socket.socket, server_name: str) -> Certificate | None:
    """The certificate that the server behind a connected socket shows for ``server_name``, verified or not.

    The connection serves only this and is closed; nothing is sent that the server could take for a request.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    transport, _ = await connection_over(asyncio.Protocol, sock, ssl=context, server_hostname=server_name)
    try:
        der = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        transport.abort()
    with contextlib.suppress(ValueError):
        return Certificate.parse(der or b"")
    return None


async def certificate_error(
    place: str,
    trust: Trust,
    server_name: str,
    error: ssl.SSLCertVerificationError,
    connect: Callable[[], Awaitable[socket.socket]],
) -> KdispatchError:
    """Why the certificate of ``place`` was refused. ``connect`` makes another connection to it, for a second look."""
    seen = None
    with contextlib.suppress(OSError, KdispatchError, TimeoutError):
        async with asyncio.timeout(_LOOK):
            seen = await seen_certificate(await connect(), server_name)
    code = _CODES.get(error.verify_code, "tls_unknown_ca")
    if code == "tls_expired" and seen is not None and seen.not_before > datetime.now(UTC):
        code = "tls_not_yet_valid"
    if code != "tls_unknown_ca":
        why = error.verify_message.rstrip(".") if seen is None else _why(code, server_name, seen)
        return KdispatchError(code, f"{place}: {why}.")
    useless = "" if trust.ca_file else await asyncio.to_thread(_useless_files)
    return KdispatchError(code, f"{place}: {_unknown(error, seen)}.{useless}")


def _why(code: str, server_name: str, seen: Certificate) -> str:
    """One sentence, with the details of the second look."""
    now = datetime.now(UTC)
    if code == "tls_wrong_host":
        names = ", ".join(printable(name) for name in seen.names[:_NAMES]) or printable(seen.subject)
        return f"its certificate is for {names}{', …' * (len(seen.names) > _NAMES)}, and not for {server_name}"
    if code == "tls_expired":
        ended = f"expired on {_minute(seen.not_after)}" if seen.not_after < now else "depends on one that has expired"
        return f"its certificate {ended}; by this machine's clock it is {_minute(now)}"
    begins = (
        f"is valid from {_minute(seen.not_before)} on"
        if seen.not_before > now
        else "depends on one that is not valid yet"
    )
    return f"its certificate {begins}; by this machine's clock it is {_minute(now)}"


def _unknown(error: ssl.SSLCertVerificationError, seen: Certificate | None) -> str:
    words = error.verify_message.rstrip(".")
    if seen is None:
        return words
    itself = seen.issuer == seen.subject
    issuer = f"{printable(seen.issuer)}{' (itself)' * itself}"
    if error.verify_code not in _UNKNOWN:
        return f"its certificate, issued by {issuer}, is refused: {words}"
    why = f"its certificate is issued by {issuer}, which this machine does not trust: {words}"
    if error.verify_code in _CUT_CHAIN and not itself:
        why += ". If other programs trust it, the server may leave out the certificates in between"
    return why


def _useless_files() -> str:
    """Sentences about certificate files in the environment that OpenSSL silently can't read."""
    found = []
    if file := os.environ.get("SSL_CERT_FILE"):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except (OSError, ValueError) as error:
            found.append(("SSL_CERT_FILE", file, _words(error)))
    folders = filter(None, os.environ.get("SSL_CERT_DIR", "").split(os.pathsep))
    found += [("SSL_CERT_DIR", folder, "no such directory") for folder in folders if not Path(folder).is_dir()]
    return "".join(f" {name} names {printable(path)}, which can't be used: {why}." for name, path, why in found)


def _words(error: OSError | ValueError) -> str:
    """Why a file can't be used."""
    if isinstance(error, ssl.SSLError):
        return error.reason.lower().replace("_", " ") if error.reason else "no PEM as it is needed"
    return (getattr(error, "strerror", None) or str(error)).lower()


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
