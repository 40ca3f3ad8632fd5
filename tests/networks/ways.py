"""The paths to a relay in these tests: each kind of proxy, each TLS, each way to name a CA."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from tests.net.harness import Network
from tests.net.tcp import service
from tests.networks.proxies import SocksServer
from tests.networks.site import PASSWORD, USER, Authority, Scheme, Site, Squid

__all__ = ["CREDENTIALS", "WAYS", "Agents", "Park", "Trust", "Way", "agents", "no_proxy", "proxy_url"]

CREDENTIALS: Final = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}@"
Way = Literal["direct", "open", "basic", "digest", "socks", "socks-password"]
WAYS: Final[tuple[Way, ...]] = ("direct", "open", "basic", "digest", "socks", "socks-password")
Trust = Literal["SSL_CERT_FILE", "--ca-file"]
_VARIABLES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


class Park:
    """Relays and proxies that several tests share; each starts when a test first needs it."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self._folder = folder
        self._authority = authority
        self._sites: dict[str, Site] = {}
        self._squids: dict[Scheme, Squid] = {}

    async def site(self, edge: str) -> Site:
        if edge not in self._sites:
            folder = self._folder / edge
            folder.mkdir()
            self._sites[edge] = await Site.start(folder, self._authority, edge)
        return self._sites[edge]

    async def squid(self, scheme: Scheme) -> Squid:
        if scheme not in self._squids:
            squid = self._squids[scheme] = Squid(scheme)
            await squid.start()
        return self._squids[scheme]

    @property
    def logs(self) -> str:
        return "".join(site.log for site in self._sites.values())

    def stop(self) -> None:
        for site in self._sites.values():
            site.stop()
        for squid in self._squids.values():
            squid.stop()


def no_proxy() -> dict[str, str]:
    """Variables that override this machine's proxies."""
    names = (*_VARIABLES, *map(str.lower, _VARIABLES), "KDISPATCH_PROXY")
    return dict.fromkeys(names, "")


@asynccontextmanager
async def proxy_url(way: Way, park: Park) -> AsyncIterator[str]:
    """The URL of a proxy of this kind, with its credentials; empty for the direct path."""
    if way == "socks" or way == "socks-password":
        server = SocksServer(*((USER, PASSWORD) if way == "socks-password" else ()))
        async with service(server) as running:
            yield f"socks5h://{CREDENTIALS if way == 'socks-password' else ''}127.0.0.1:{running.port}"
    elif way == "direct":
        yield ""
    else:
        squid = await park.squid(way)
        yield f"http://{'' if way == 'open' else CREDENTIALS}127.0.0.1:{squid.port}"


@dataclass(frozen=True)
class Agents:
    """Agents, and the additional options that each of their commands needs."""

    network: Network
    options: tuple[str, ...]


@asynccontextmanager
async def agents(folder: Path, site: Site, proxy: str, authority: Authority, trust: Trust) -> AsyncIterator[Agents]:
    """Run agents that reach the site by this proxy, or directly, and get the CA in this way."""
    # Only the proxies know the name.
    url = f"https://{'relay.test' if proxy else '127.0.0.1'}:{site.port}"
    network = Network(folder, url, site.token)
    network.environment |= no_proxy()
    if proxy:
        network.environment["ALL_PROXY" if proxy.startswith("socks") else "HTTPS_PROXY"] = proxy
    if trust == "SSL_CERT_FILE":
        network.environment["SSL_CERT_FILE"] = str(authority.file)
    try:
        yield Agents(network, ("--ca-file", str(authority.file)) if trust == "--ca-file" else ())
    finally:
        network.stop()
