"""Checks of the path to one URL of the relay: name, proxy, TCP, TLS, and what answers there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from kdispatch.doctor.findings import Finding, failed, fails, ok, skipped, warns
from kdispatch.network.answers import strange
from kdispatch.network.asking import HttpAnswer, ask
from kdispatch.network.certificate import Certificate
from kdispatch.network.dialer import Dialer
from kdispatch.network.proxy import Proxy
from kdispatch.network.spoiled import owner
from kdispatch.network.through import connect_through
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import Settings
from kdispatch_protocol.errors import CODES, KdispatchError
from kdispatch_protocol.process.system_errors import reasons_of
from kdispatch_protocol.session.aio.handover import connection_over

__all__ = ["Way"]

_SECONDS: Final = 8.0  # for each step
_ADDRESSES: Final = 6  # addresses of a name that are tried
_SKEW: Final = 60.0  # seconds: beyond this certificates and log times begin to disagree
_AGREES: Final = 2.0  # the header has whole seconds
_RENEWED: Final = timedelta(days=2)  # a certificate this close to its end should have been replaced
_FAMILIES: Final = ((socket.AF_INET, "IPv4"), (socket.AF_INET6, "IPv6"))
_Address = tuple[socket.AddressFamily, Any]


class Way:
    """One URL of the relay, with the findings about its path so far."""

    def __init__(self, settings: Settings, relay: RelayUrl) -> None:
        self.relay = relay
        self.settings = dataclasses.replace(settings, relay=str(relay))
        self.dialer = Dialer.of(self.settings)
        self.proxy: Proxy | None = self.dialer.proxy(relay)
        self.connect_seconds: float | None = None  # of the fastest TCP connection, or of the one through the proxy
        self.certificate: Certificate | None = None  # the accepted one
        self.answer: HttpAnswer | None = None  # the relay's, to a plain request
        self._refused = False  # a certificate was shown, but is not valid
        self._addresses: list[_Address] = []

    @property
    def intercepted_by(self) -> str:
        """A sentence about the issuer of the certificate that ends TLS, and so can read it; may be empty."""
        return f" TLS ends at a certificate issued by {self.certificate.issuer}." if self.certificate else ""

    @property
    def owner(self) -> str:
        """The start of a hint: whom to ask, and for what."""
        return owner(self.relay, self.proxy)

    async def check_dns(self) -> list[Finding]:
        """Check the name, in both address families."""
        with_address = _is_address(self.relay.host)
        if self.proxy is not None and not with_address:
            return [ok("dns", f"left to the proxy, which resolves {self.relay.host}")]
        found, why = await self._look_up()
        if not self._addresses:
            text = f"The name {self.relay.host} cannot be resolved: {why}."
            return [fails("dns", text, "Check the relay's name, and this machine's DNS.", code="relay_unreachable")]
        if with_address:
            return [ok("dns", f"{self.relay.host} is an address")]
        return [ok("dns", f"{self.relay.host} has {'; '.join(found)}")]

    async def _look_up(self) -> tuple[list[str], str]:
        loop = asyncio.get_running_loop()
        found, why = [], "no answer"
        for family, name in _FAMILIES:
            try:
                async with asyncio.timeout(_SECONDS):
                    answers = await loop.getaddrinfo(
                        self.relay.host, self.relay.port, family=family, type=socket.SOCK_STREAM
                    )
            except TimeoutError:
                found.append(f"{name}: no answer within {_SECONDS:g} s")
            except OSError as error:
                why = (error.strerror or str(error)).rstrip(".")
                found.append(f"no {name} address")
            else:
                addresses = [(family, place) for family, *_, place in answers]
                self._addresses += addresses
                found.append(f"{name} {', '.join(dict.fromkeys(str(place[0]) for _, place in addresses))}")
        return found, why

    async def check_proxy(self) -> list[Finding]:
        """Check which proxy is used, where it is configured, and whether it connects to the relay."""
        proxy = self.proxy
        if proxy is None:
            return [ok("proxy", "none: the relay is reached directly")]
        began = time.monotonic()
        try:
            async with asyncio.timeout(_SECONDS):
                sock = await connect_through(proxy, self.relay.host, self.relay.port)
        except TimeoutError:
            row = CODES["proxy_unreachable"]
            text = f"{proxy} (from {proxy.source}) says nothing within {_SECONDS:g} s."
            return [fails("proxy", text, row.hint, code=row.name)]
        except KdispatchError as error:
            return [failed("proxy", error)]  # its text names the proxy and its source
        sock.close()
        self.connect_seconds = time.monotonic() - began
        text = f"{proxy} (from {proxy.source}) lets {self.relay.authority} pass, {_ms(self.connect_seconds)}"
        return [ok("proxy", text)]

    async def check_tcp(self) -> list[Finding]:
        """Check each address of the relay."""
        if self.proxy is not None:
            return [ok("tcp", "made by the proxy")]
        addresses = self._addresses[:_ADDRESSES]
        outcomes = await asyncio.gather(*(_connects(family, place) for family, place in addresses))
        places = [str(place[0]) for _, place in addresses]
        good = [
            f"{place} in {_ms(outcome)}" for place, outcome in zip(places, outcomes, strict=True) if _is_time(outcome)
        ]
        bad = [f"{place}: {outcome}" for place, outcome in zip(places, outcomes, strict=True) if not _is_time(outcome)]
        times = [outcome for outcome in outcomes if isinstance(outcome, float)]
        if not good:
            row = CODES["relay_unreachable"]
            text = f"Port {self.relay.port} of {self.relay.host} can't be reached ({'; '.join(bad)})."
            hint = (
                "Check the address; if others reach it, ask the network's owner to allow it, or for a proxy (--proxy)."
            )
            return [fails("tcp", text, hint, code=row.name)]
        self.connect_seconds = min(times)
        if bad:
            text = f"{', '.join(good)}, but {'; '.join(bad)}."
            return [
                warns("tcp", text, "Agents use the other address; tell the relay's operator or your network's owner.")
            ]
        return [ok("tcp", ", ".join(good))]

    async def check_tls(self) -> list[Finding]:
        """Check the TLS handshake as agents do it, and the issuer of the certificate."""
        if not self.relay.secure:
            return [ok("tls", "none: plain http")]
        began = time.monotonic()
        try:
            async with asyncio.timeout(2 * _SECONDS):
                transport = await self.connect(asyncio.Protocol)
        except TimeoutError:
            return [fails("tls", "The TLS handshake did not finish in time.", _TLS_HINT, code="relay_unreachable")]
        except KdispatchError as error:
            self._refused = error.code.startswith("tls_")
            return [failed("tls", error, _UNKNOWN_CA if error.code == "tls_unknown_ca" else "")]
        seconds = time.monotonic() - began
        ssl_object: ssl.SSLObject = transport.get_extra_info("ssl_object")
        shown = ssl_object.getpeercert(binary_form=True)
        transport.abort()
        self.certificate = Certificate.parse(shown or b"")
        return [self._good_certificate(self.certificate, ssl_object.version() or "TLS", seconds)]

    def _good_certificate(self, certificate: Certificate, protocol: str, seconds: float) -> Finding:
        ends = f"{certificate.not_after:%Y-%m-%d}"
        text = f"{protocol} in {_ms(seconds)}, certificate issued by {certificate.issuer}, valid until {ends}"
        if certificate.not_after - datetime.now(UTC) < _RENEWED:
            return warns("tls", f"{text}.", "Tell the relay's operator, or whose certificate it is, to renew it.")
        return ok("tls", text)

    async def connect(self, make: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        """Connect as agents do."""
        _, transport, _ = await self.dialer.open_at(self.relay, lambda _: make())
        return transport

    async def _connect_by(self, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        """Connect with another context; send nothing secret over this connection."""
        loop = asyncio.get_running_loop()
        name = self.settings.server_name or self.relay.host
        async with asyncio.timeout(_SECONDS):
            if self.proxy is not None:
                sock = await connect_through(self.proxy, self.relay.host, self.relay.port)
                transport, _ = await connection_over(make, sock, ssl=context, server_hostname=name)
            else:
                transport, _ = await loop.create_connection(
                    make, self.relay.host, self.relay.port, ssl=context, server_hostname=name
                )
        return transport

    async def check_http(self) -> list[Finding]:
        """Check whether a relay answers a plain request."""
        try:
            self.answer = answer = await ask(self.relay, self.connect)
        except KdispatchError as error:
            return [failed("http", error)]
        if answer.code is not None:
            return [ok("http", f"a kdispatch relay answers in {_ms(answer.seconds)}{answer.passed_by}")]
        return [failed("http", strange(self.relay, answer.status, answer.headers))]

    async def check_clock(self) -> list[Finding]:
        """Compare this machine's clock with that of the server, even if its certificate is not valid."""
        answer = self.answer
        if answer is None and self._refused:
            with contextlib.suppress(KdispatchError, OSError):
                answer = await ask(self.relay, partial(self._connect_by, _any_certificate()))
        if answer is None:
            return [skipped("clock", "not compared: the relay does not answer, see below")]
        ahead = answer.ahead(datetime.now(UTC))
        if ahead is None:
            return [skipped("clock", "not compared: the answer has no date")]
        text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the relay's"
        if abs(ahead) > _SKEW:
            return [warns("clock", f"This machine's clock is {text}.", "Set it, or let it be set (NTP).", hop="you")]
        return [ok("clock", "agrees with the relay's" if abs(ahead) < _AGREES else text)]


_UNKNOWN_CA: Final = (
    "If the issuer is your network's own, it intercepts TLS: ask its owner for the issuer's certificate, and give it "
    "by --ca-file FILE or install it. If the owner does not know it, do not continue."
)
_TLS_HINT: Final = "Ask the network's owner whether it intercepts or blocks TLS to the relay."


def _any_certificate() -> ssl.SSLContext:
    """A context only for reading the date of an answer: it verifies nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _connects(family: socket.AddressFamily, place: Any) -> float | str:
    """Seconds that the connection took, or the reason of its failure."""
    began = time.monotonic()
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(0)
        try:
            async with asyncio.timeout(_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, place)
        except TimeoutError as error:
            return reasons_of(error) if error.errno else f"no answer within {_SECONDS:g} s"
        except OSError as error:
            # By number, because event loops replace the system's text with their own.
            return reasons_of(error)
    return time.monotonic() - began


def _is_time(outcome: float | str) -> bool:
    return isinstance(outcome, float)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _ms(seconds: float | str) -> str:
    return f"{float(seconds) * 1000:.0f} ms"
