"""The proxy for a relay: its address, and where that is configured.

The order of precedence: ``--proxy``; for https relays ``https_proxy`` or ``HTTPS_PROXY``, for http relays only
``http_proxy`` (a web server's CGI programs get HTTP_PROXY from any client); ``all_proxy`` or ``ALL_PROXY``; the
system's settings. ``no_proxy`` or ``NO_PROXY`` exclude names from the environment's proxies.

A relay on loopback is reached directly unless ``--proxy`` is given: the variables are meant for other
machines, and a proxy on another machine has its own loopback.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from kdispatch.machine.operating_system import HERE
from kdispatch.relay_url import RelayUrl
from kdispatch.setup_error import SetupError

__all__ = ["Proxy", "find_proxy"]

_SCHEMES: Final = {"http": "http", "socks5": "socks5", "socks5h": "socks5", "socks": "socks5"}
_DEFAULT_PORTS: Final = {"http": 80, "socks5": 1080}
#: From RFC 1929: its lengths are one byte each.
_SOCKS_BYTES: Final = 255
_LABEL: Final = r"[a-z0-9_][a-z0-9_-]{0,62}"
_AUTHORITY: Final = re.compile(
    rf"(\[(?P<six>[0-9a-f:.]+)\]|(?P<name>{_LABEL}(\.{_LABEL}){{0,126}})\.?)(:(?P<port>[0-9]{{1,5}}))?", re.IGNORECASE
)
#: An entry of NO_PROXY: an IPv6 address may be in brackets, all others may have a port.
_ENTRY: Final = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<name>[^:]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A checked proxy address. ``source`` says where it was configured, as users know it: "HTTPS_PROXY", "--proxy".

    ``scheme`` is "http" or "socks5". No text of it contains ``user`` or ``password``.
    """

    scheme: str
    host: str
    port: int
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    source: str

    @classmethod
    def parse(cls, text: str, source: str) -> Proxy:
        """Parse ``http://USER:PASSWORD@HOST:PORT`` or ``socks5://…``; without a scheme it is http.

        Raises :class:`SetupError` (``bad_request``). Its text repeats nothing of the address, as any part may belong to
        the password.
        """
        text = text.strip()
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "http", text
        scheme = scheme.lower()
        if scheme == "https":
            raise _bad(
                source, "it is an https:// proxy, which kdispatch does not support", "Most take http:// as well."
            )
        if scheme not in _SCHEMES:
            raise _bad(source, "it begins with neither http:// nor socks5://")
        authority, _, path = rest.partition("/")
        credentials, at, place = authority.rpartition("@")
        match = _AUTHORITY.fullmatch(place)
        if match is None or path or (match["port"] and not 0 < int(match["port"]) < 65536):
            raise _bad(source, "it is not HOST:PORT, with or without USER:PASSWORD@ before it")
        scheme = _SCHEMES[scheme]
        user, password = _credentials(credentials, scheme, source) if at else (None, None)
        port = int(match["port"] or _DEFAULT_PORTS[scheme])
        return cls(scheme, (match["six"] or match["name"]).lower(), port, user, password, source)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def _credentials(text: str, scheme: str, source: str) -> tuple[str, str]:
    quoted_user, _, quoted_password = text.partition(":")
    try:
        user, password = (unquote(part, errors="strict") for part in (quoted_user, quoted_password))
    except UnicodeDecodeError:
        raise _bad(source, "its name or password is no %-encoded UTF-8") from None
    if re.search(r"[\x00-\x1f\x7f]", user + password):
        raise _bad(source, "its name or password has a control character in it")
    if scheme == "socks5" and not all(part.isascii() and 0 < len(part) <= _SOCKS_BYTES for part in (user, password)):
        raise _bad(source, "SOCKS5 takes names and passwords of 1 to 255 ASCII characters only")
    return user, password


def _bad(source: str, why: str, also: str = "Special characters of a password are %-encoded.") -> SetupError:
    hint = f"Write {source} as http://USER:PASSWORD@HOST:PORT or socks5://HOST:PORT. {also}"
    return SetupError("bad_request", f"The proxy of {source} is not usable: {why}.", hint=hint)


def find_proxy(
    relay: RelayUrl, *, proxy: str = "", no_proxy: bool = False, environment: Mapping[str, str] = os.environ
) -> Proxy | None:
    """The proxy for ``relay``, or ``None``. ``proxy`` and ``no_proxy`` are the settings of these names.

    Raises :class:`SetupError` for an unusable address.
    """
    if no_proxy:
        return None
    if proxy.strip():
        return Proxy.parse(proxy, "--proxy")
    if relay.is_loopback:
        return None
    own = ("https_proxy", "HTTPS_PROXY") if relay.secure else ("http_proxy",)
    for name in (*own, "all_proxy", "ALL_PROXY"):
        if text := environment.get(name, "").strip():
            excepted = environment.get("no_proxy", "") or environment.get("NO_PROXY", "")
            return None if _is_excepted(relay, excepted) else Proxy.parse(text, name)
    system = HERE.system_proxies(relay.host)
    for scheme in ("https" if relay.secure else "http", "socks"):
        if text := system.get(scheme, ""):
            return Proxy.parse(text, "the system's settings")
    return None


def _is_excepted(relay: RelayUrl, entries: str) -> bool:
    return any(_matches(relay, entry) for entry in re.split(r"[\s,]+", entries) if entry)


def _matches(relay: RelayUrl, entry: str) -> bool:
    """Whether an entry of NO_PROXY covers the relay: a name with its subdomains, an address, a network, ``*``."""
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(relay.host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        match = _ENTRY.fullmatch(entry)
    if match is None or (match["port"] and int(match["port"]) != relay.port):
        return False
    address = _address(relay.host)
    if match["six"]:
        return address is not None and address == _address(match["six"])
    name = match["name"].lower().removeprefix("*").strip(".")
    return bool(name) and (relay.host == name or (address is None and relay.host.endswith(f".{name}")))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
