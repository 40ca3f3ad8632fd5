"""Checks of the way to one address of the relay: name, proxy, TCP, TLS, and what answers behind them."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from kdispatch.doctor.asking import Answer, ask
from kdispatch.doctor.certificate import issuer_of, reading_context, seen_context
from kdispatch.doctor.findings import Finding, failed, fails, ok, skipped, warns
from kdispatch.network.dialer import Dialer
from kdispatch.network.proxy import Proxy, find_proxy
from kdispatch.network.through import connect_through
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import Settings
from kdispatch_protocol.errors import CODES, KdispatchError

__all__ = ["Way"]

_SECONDS: Final = 8.0  # for each step
_ADDRESSES: Final = 6  # of a name that are tried
_SKEW: Final = 60.0  # seconds: beyond that certificates, and people's logs, begin to disagree
_AGREES: Final = 2.0  # the header has whole seconds
_DAYS: Final = 7  # that a certificate should still be valid for
_FAMILIES: Final = ((socket.AF_INET, "IPv4"), (socket.AF_INET6, "IPv6"))
_Address = tuple[socket.AddressFamily, Any]


class Way:
    """One URL of the relay, and what was found on the way to it so far."""

    def __init__(self, settings: Settings, relay: RelayUrl) -> None:
        self.relay = relay
        self.settings = dataclasses.replace(settings, relay=str(relay))
        self.dialer = Dialer.of(self.settings)
        self.proxy: Proxy | None = None
        self.connect_seconds: float | None = None  # of the fastest TCP connection, or of that through the proxy
        self.certificate: dict[str, Any] = {}
        self.answer: Answer | None = None  # the relay's, to a plain request
        self._addresses: list[_Address] = []

    @property
    def intercepted_by(self) -> str:
        """A half sentence about who ends TLS; empty where nobody does."""
        return f" TLS is ended by what {issuer_of(self.certificate)} has signed." if self.certificate else ""

    @property
    def owner(self) -> str:
        """Whom to ask, and to let what pass."""
        through = f", at the proxy {self.proxy}" if self.proxy is not None else ""
        return f"Ask the network's owner to let WebSockets to {self.relay.authority} pass{through}"

    async def check_dns(self) -> list[Finding]:
        """The name, in both families."""
        try:
            self.proxy = self._find_proxy()
        except KdispatchError:
            return [skipped("dns", "not looked at: the proxy is not usable")]
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

    def _find_proxy(self) -> Proxy | None:
        return find_proxy(self.relay, proxy=self.settings.proxy, no_proxy=self.settings.no_proxy)

    async def check_proxy(self) -> list[Finding]:
        """Which proxy, where it was found, and what it says to the relay's name."""
        try:
            proxy = self._find_proxy()
        except KdispatchError as error:
            return [failed("proxy", error)]
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
            found = failed("proxy", error)
            return [dataclasses.replace(found, text=f"{found.text} (The proxy is from {proxy.source}.)")]
        sock.close()
        self.connect_seconds = time.monotonic() - began
        text = f"{proxy} (from {proxy.source}) lets {self.relay.authority} pass, {_ms(self.connect_seconds)}"
        return [ok("proxy", text)]

    async def check_tcp(self) -> list[Finding]:
        """Each address of the relay."""
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
        """The handshake as agents make it, and who signed the certificate."""
        if not self.relay.secure:
            return [ok("tls", "none: plain http")]
        began = time.monotonic()
        try:
            async with asyncio.timeout(2 * _SECONDS):
                transport = await self.connect(asyncio.Protocol)
        except TimeoutError:
            return [fails("tls", "No end of the TLS handshake in time.", _TLS_HINT, code="relay_unreachable")]
        except KdispatchError as error:
            return [await self._bad_certificate(error)]
        seconds = time.monotonic() - began
        ssl_object: ssl.SSLObject = transport.get_extra_info("ssl_object")
        self.certificate = dict(ssl_object.getpeercert() or {})
        transport.abort()
        return [self._good_certificate(ssl_object.version() or "TLS", seconds)]

    def _good_certificate(self, protocol: str, seconds: float) -> Finding:
        ends = str(self.certificate.get("notAfter", ""))
        text = f"{protocol}, certificate signed by {issuer_of(self.certificate)}, valid until {ends}, {_ms(seconds)}"
        if ends and ssl.cert_time_to_seconds(ends) - time.time() < _DAYS * 86400:
            return warns("tls", f"{text}.", "Tell the relay's operator, or whose certificate it is, to renew it.")
        return ok("tls", text)

    async def _bad_certificate(self, error: KdispatchError) -> Finding:
        if not error.code.startswith("tls_"):
            return failed("tls", error)
        certificate = await self._shown()
        if not certificate:
            return failed("tls", error)
        issuer = issuer_of(certificate)
        found = failed("tls", error)
        text = f"{error.text} The certificate is signed by {issuer!r}"
        if error.code != "tls_unknown_ca":
            dates = f"valid from {certificate.get('notBefore')} until {certificate.get('notAfter')}"
            return dataclasses.replace(found, text=f"{text}, {dates}.")
        hint = (
            f"If {issuer!r} is your network's own CA, the network opens TLS: ask its owner for the CA's certificate, "
            "and give it by --ca-file FILE (or install it). If nobody knows it, do not go on."
        )
        return dataclasses.replace(found, text=f"{text}, whom this machine does not trust.", hint=hint)

    async def _shown(self) -> dict[str, Any]:
        """The fields of whatever certificate is shown."""
        try:
            binary = (await self._look(seen_context())).getpeercert(binary_form=True)
            return dict((await self._look(reading_context(binary or b""))).getpeercert() or {})
        except (OSError, KdispatchError, ValueError):
            return {}

    async def _look(self, context: ssl.SSLContext) -> ssl.SSLObject:
        transport = await self._connect_by(context, asyncio.Protocol)
        seen: ssl.SSLObject = transport.get_extra_info("ssl_object")
        transport.abort()
        return seen

    async def connect(self, make: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        """A connection as agents make it."""
        _, transport, _ = await self.dialer.open_at(self.relay, lambda _: make())
        return transport

    async def _connect_by(self, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        """One by another context, by which nothing secret may be told."""
        loop = asyncio.get_running_loop()
        name = self.settings.server_name or self.relay.host
        async with asyncio.timeout(_SECONDS):
            if self.proxy is not None:
                sock = await connect_through(self.proxy, self.relay.host, self.relay.port)
                transport, _ = await loop.create_connection(make, sock=sock, ssl=context, server_hostname=name)
            else:
                transport, _ = await loop.create_connection(
                    make, self.relay.host, self.relay.port, ssl=context, server_hostname=name
                )
        return transport

    async def check_http(self) -> list[Finding]:
        """Whether a relay answers a plain request."""
        try:
            self.answer = answer = await ask(self.relay, self.connect)
        except KdispatchError as error:
            return [failed("http", error)]
        if answer.code is not None:
            return [ok("http", f"a kdispatch relay answers, {_ms(answer.seconds)}{answer.author}")]
        if 200 <= answer.status < 300 and answer.kind == "text/html":
            row = CODES["captive_portal"]
            return [fails("http", f"A web page answers in the relay's place{answer.author}.", row.hint, code=row.name)]
        if answer.status >= 500:
            text = f"{answer.status} is answered in the relay's place{answer.author}: it is away, or not reached."
            return [fails("http", text, "Ask the relay's operator.", code="relay_unreachable")]
        row = CODES["not_a_relay"]
        text = f"{answer.status} and {answer.kind} is answered, by no kdispatch relay{answer.author}."
        return [fails("http", text, row.hint, code=row.name)]

    async def check_clock(self) -> list[Finding]:
        """This machine's clock against that of what answers, be its certificate valid or not."""
        try:
            answer = self.answer or await ask(self.relay, partial(self._connect_by, seen_context()))
        except (KdispatchError, OSError):
            return [skipped("clock", "not compared: the relay does not answer, see below")]
        ahead = answer.ahead(datetime.now(UTC))
        if ahead is None:
            return [skipped("clock", "not compared: the answer has no date")]
        text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the relay's"
        if abs(ahead) > _SKEW:
            return [warns("clock", f"This machine's clock is {text}.", "Set it, or let it be set (NTP).", hop="you")]
        return [ok("clock", "agrees with the relay's" if abs(ahead) < _AGREES else text)]


_TLS_HINT: Final = "Ask the network's owner whether it opens or blocks TLS to the relay."


async def _connects(family: socket.AddressFamily, place: Any) -> float | str:
    """Seconds that it took, or why it did not work."""
    began = time.monotonic()
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(0)
        try:
            async with asyncio.timeout(_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, place)
        except TimeoutError as error:
            return error.strerror or f"no answer within {_SECONDS:g} s"
        except OSError as error:
            return (error.strerror or str(error)).lower()
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
