"""The relay's address: parsed and checked once; everything else derives from it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from kdispatch_protocol.errors import KdispatchError

__all__ = ["API_PREFIX", "RelayUrl", "is_host"]

#: Path of the REST API and the tunnel, below the relay's address.
API_PREFIX: Final = "/api/v1"

_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
#: urlsplit alone reads "[::1]x" as "::1". A zone is not part of an address that others could use.
_AUTHORITY: Final = re.compile(
    r"(\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE
)
_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
#: Segments of a path prefix: the unreserved characters of RFC 3986, so nothing ever needs escaping.
_PREFIX: Final = re.compile(r"(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._~-]+)*")


@dataclass(frozen=True, slots=True)
class RelayUrl:
    """A checked address. Its ``str()`` is canonical, so it serves as a key.

    ``host`` is in lower case and without brackets; ``prefix`` is empty, or starts
    with a slash and does not end with one.
    """

    secure: bool
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, text: str, *, insecure_plaintext: bool = False) -> RelayUrl:
        """Parse ``https://relay.example.org/prefix``; without a scheme it is https.

        Raises ``bad_relay_url``, or ``plaintext_refused`` for http to anything but
        this machine's loopback unless ``insecure_plaintext`` is set. The error's
        text never repeats what stands before an ``@``.
        """
        text = text.strip()
        if not text:
            raise KdispatchError("bad_relay_url", "No relay is named.")
        if "://" not in text:
            text = f"https://{text}"
        url = cls._split(text)
        if not (url.secure or insecure_plaintext or url.is_loopback):
            raise KdispatchError(
                "plaintext_refused",
                f"Over plain http to {url.host} everyone on the network path could read the tokens.",
            )
        return url

    @classmethod
    def _split(cls, text: str) -> RelayUrl:
        # urlsplit drops tabs and newlines silently, and other programs may read another host from the result.
        if any(not "!" <= character <= "~" or character == "\\" for character in text):
            raise _bad("it may only have plain ASCII characters; write an international name in its xn-- form")
        if "@" in text.split("://", 1)[1].partition("/")[0]:
            raise _bad("it must not carry a name or password; give tokens separately")
        if "?" in text or "#" in text:
            raise _bad("it must have neither a query nor a fragment")
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise _bad(f"{text[:200]!r} cannot be read: {error}") from error
        if parts.scheme not in _DEFAULT_PORTS:
            raise _bad(f"{text[:200]!r} begins with neither https:// nor http://")
        if (place := _AUTHORITY.fullmatch(parts.netloc)) is None:
            raise _bad(f"{parts.netloc[:260]!r} is not HOST or HOST:PORT")
        port = int(place["port"] or _DEFAULT_PORTS[parts.scheme])
        if not 0 < port < 65536:
            raise _bad(f"{port} is no port")
        prefix = parts.path.rstrip("/")
        if _PREFIX.fullmatch(prefix) is None:
            raise _bad(f"its path {parts.path[:200]!r} is not made of plain segments")
        host = _name(place["name"]) if place["name"] else _six(place["six"])
        return cls(parts.scheme == "https", host, port, prefix)

    @property
    def is_loopback(self) -> bool:
        """Whether the address can only mean this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def authority(self) -> str:
        """``host:port``, always with the port, as messages show it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def tunnel(self) -> str:
        """The WebSocket's URL, ws or wss."""
        return f"ws{'s' if self.secure else ''}://{self._place}{API_PREFIX}/tunnel"

    def rest(self, path: str) -> str:
        """The URL of ``path``, which begins with a slash, in the REST API."""
        return f"{self}{API_PREFIX}{path}"

    def __str__(self) -> str:
        return f"http{'s' if self.secure else ''}://{self._place}"

    @property
    def _place(self) -> str:
        default = _DEFAULT_PORTS["https" if self.secure else "http"]
        authority = self.authority
        return (authority.rpartition(":")[0] if self.port == default else authority) + self.prefix


def is_host(text: str) -> bool:
    """Whether ``text`` is a host name or an address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST_NAME.fullmatch(text.lower()) is not None
    return True


def _name(host: str) -> str:
    host = host.lower().removesuffix(".")
    if _HOST_NAME.fullmatch(host) is None:
        raise _bad(f"{host[:260]!r} is no host name")
    return host


def _six(host: str) -> str:
    try:
        return ipaddress.IPv6Address(host).compressed
    except ValueError as error:
        raise _bad(f"{host[:80]!r} is no IPv6 address") from error


def _bad(why: str) -> KdispatchError:
    return KdispatchError("bad_relay_url", f"The relay's address is not usable: {why}.")
